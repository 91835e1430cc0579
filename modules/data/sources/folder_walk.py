"""The files below a folder, without what is hidden and what runs of this trainer wrote there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from modules.output.owned_files import OwnedFiles
from modules.output.run_files import METRICS, RECORD

SIGNS = (RECORD, METRICS, "checkpoints")  # no run's folder is without all of them


class FoundFile(NamedTuple):
    """A path, and the number by which its file system knows the file, whatever leads there."""

    path: str
    inode: int


class RunFolders:
    """Tells what runs of this trainer wrote, wherever; remembers the folders it has looked into."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.written: set[str] = set()

    def wrote(self, path: str) -> bool:
        """Whether a run wrote this file or folder, or a folder that it is in. path: a real one."""
        self._look_into(os.path.dirname(path))
        parts = (path, *map(str, Path(path).parents)) if self.written else ()
        return not self.written.isdisjoint(parts)

    def known_in(self, folder: str) -> set[str]:
        """What runs wrote into a folder that none wrote itself, and more. folder: a real one."""
        self._look_into(folder)
        return self.written

    def _look_into(self, folder: str) -> None:
        while folder not in self.seen:
            self.seen.add(folder)
            if any(os.path.exists(os.path.join(folder, name)) for name in SIGNS):
                self.written.update(map(os.path.realpath, OwnedFiles(folder).existing()))
            folder = os.path.dirname(folder)


def files_below(folder: str | Path, refused: list[OSError] | None = None) -> Iterator[FoundFile]:
    """Every such file, folder by folder, in no order in it; links are followed, each once.

    refused: takes what folders raise that cannot be listed.
    """
    runs, visited = RunFolders(), set()  # a link to a folder above would lead round in circles
    waiting = [os.fspath(folder)]
    while waiting:
        parent = waiting.pop()
        real = os.path.realpath(parent)
        if real in visited or runs.wrote(real):
            continue
        visited.add(real)
        folders, written = [], runs.known_in(real)
        try:
            entries = os.scandir(parent)
        except OSError as error:  # no permission
            if refused is not None:
                refused.append(error)
            continue
        for entry in (entry for entry in entries if not entry.name.startswith(".")):
            if _is_folder(entry):
                folders.append(entry.path)
                continue
            linked = entry.is_symlink()
            if linked and runs.wrote(os.path.realpath(entry.path)):
                continue
            if linked or not written or f"{real}/{entry.name}" not in written:
                yield FoundFile(entry.path, _inode(entry))
        waiting += sorted(folders, reverse=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _inode(entry: os.DirEntry[str]) -> int:
    """Of what a link leads to; without a further look at the disk for anything else."""
    if not entry.is_symlink():
        return entry.inode()
    try:
        return entry.stat().st_ino
    except OSError:  # it leads nowhere
        return 0
