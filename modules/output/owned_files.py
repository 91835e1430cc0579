"""What runs of this trainer wrote into a folder: nothing else there is deleted or replaced."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from modules.output.durable import replacing, sha256
from modules.output.run_files import (
    AT_THE_END,
    BEST,
    CONFIG,
    METRICS,
    PICTURES,
    RECORD,
    UNFINISHED,
    WHILE_TRAINING,
    find,
    is_folders,
    tracker_files,
)

logger = logging.getLogger(__name__)

CARD = "Every flag of the run is in `train_config.yaml`"  # a sentence of every model card


class OwnedFiles:
    """The names in a folder that are ours, as the hidden file RECORD there lists them.

    A name is recorded before its first file is written, and only where nothing bore it: whatever
    bears it later is ours, whenever a run is killed, but no folder where we write a file. A signed
    file is ours as long as it is not `changed`. A folder without a record, of an earlier version or
    copied without hidden files, is judged by what is unmistakable in it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.signed: dict[str, str] = {}
        self.changed: set[str] = set()
        self.names = self._recorded()

    def existing(self) -> Iterator[Path]:
        """The files and folders that are ours."""
        return (path for name in self.names for path in find(self.folder, [name])
                if self._is_ours(name, path))  # fmt: skip

    def foreign(self, names: Iterable[str]) -> list[Path]:
        """What bears one of `names` and is not ours."""
        return [path for name in names for path in find(self.folder, [name])
                if not self._is_ours(name, path)]  # fmt: skip

    def _is_ours(self, name: str, path: Path) -> bool:
        return name in self.names and (is_folders(name) or not path.is_dir())

    def claim(self, names: Iterable[str]) -> None:
        """Records `names` as ours; what others have put there is set aside first, and named."""
        names = tuple(names)
        for path in self.foreign(names):
            aside = free_name(path)
            os.replace(path, aside)
            logger.warning("%s is not what a run wrote, and this one is about to write a file of "
                           "that name: it is now %s", path, aside.name)  # fmt: skip
        self.changed.difference_update(names)
        self.signed = {name: sign for name, sign in self.signed.items() if name not in names}
        self._record(dict.fromkeys((*self.names, *names)))

    def write(self, name: str, text: str) -> None:
        """Writes a file of ours that people edit, and signs it."""
        (self.folder / name).write_text(text, encoding="utf-8")
        self.sign(name)

    def sign(self, name: str) -> None:
        """Remembers how a file of ours is now: the user's changes to it would be the user's."""
        self.signed[name] = _digest(self.folder / name)
        self._record(self.names)

    def delete(self) -> None:
        """Deletes all that is ours, and the folders that are empty then; links to folders stay."""
        for path in list(self.existing()):
            remove(path)
            for parent in path.parents:
                if parent == self.folder or parent.is_symlink() or any(parent.iterdir()):
                    break
                parent.rmdir()
        self.signed = {name: sign for name, sign in self.signed.items() if name in self.changed}
        self._record(())

    def _record(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        content = {"files": [*self.names, *self.changed], "signed": self.signed}
        with replacing(self.folder / RECORD) as partial:
            partial.write_text(json.dumps(content, indent=1), encoding="utf-8")

    def _recorded(self) -> tuple[str, ...]:
        try:
            content = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
            names, self.signed = map(str, content["files"]), dict(content["signed"])
        except (OSError, ValueError, KeyError, TypeError):
            return tuple(self._unmistakable())
        self.changed = {n for n, sign in self.signed.items() if _digest(self.folder / n) != sign}
        return tuple(name for name in names if name not in self.changed)

    def _unmistakable(self) -> Iterator[str]:
        """The names that are ours in a folder without a record."""
        if any(find(self.folder, ["checkpoints/step-<step>/manifest.json"])):
            yield from (*WHILE_TRAINING, *tracker_files("logs", "train_autoencoderkl"))
            yield from (name for name in AT_THE_END if name != "README.md")
        elif _contains(self.folder / METRICS, '{"step": '):
            yield from (METRICS, PICTURES, *UNFINISHED)
            if _contains(self.folder / CONFIG, "\ndisc_start: "):
                yield from (CONFIG, *BEST)
        if _contains(self.folder / "README.md", CARD):
            yield "README.md"


def remove(path: Path) -> None:
    """Deletes a file, a folder with all that is in it, or a link but not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def free_name(path: Path) -> Path:
    """Such as notes.txt.kept, that nothing bears yet."""
    names = (path.with_name(f"{path.name}.kept{number or ''}") for number in range(10**6))
    return next(name for name in names if not os.path.lexists(name))


def _digest(file: Path) -> str:
    try:
        return sha256(file)
    except OSError:  # it has been deleted
        return ""


def _contains(file: Path, text: str) -> bool:
    try:  # a pipe would be waited for
        return file.is_file() and text.encode() in file.read_bytes()
    except OSError:
        return False
