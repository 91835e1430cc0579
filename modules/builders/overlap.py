"""Folders and files that must not overlap, compared as what they are, whatever their names are."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from modules.config.inputs import DataArguments


def searched_by_datasets(data: DataArguments) -> list[tuple[str, str]]:
    """(flag, glob pattern) of the local places in which `load_dataset` looks for files."""
    if not data.dataset_name:
        return []
    names = [glob.escape(name) for name in data.dataset_name if os.path.isdir(name)]
    if data.data_files:
        return [
            ("data_files", os.path.join(start, pattern))
            for pattern in data.data_files
            for start in ("", *names)
        ]
    folders = [("dataset_name", name) for name in names]
    if data.train_data_dir:
        folders.append(("train_data_dir", glob.escape(data.train_data_dir)))
    return [(flag, os.path.join(folder, "**")) for flag, folder in folders]


def lies_in(path: str | Path, folder: str | Path) -> bool:
    """Whether `path`, which need not exist yet, is in `folder` or it, whatever links lead there."""
    return _names_below(path, folder) is not None


def would_match(path: str | Path, pattern: str) -> bool:
    """Whether a glob pattern would find `path`, which need not exist yet, through whatever links.

    `**` stands for folders of any depth and, at the end, for all that is in them.
    """
    parts = Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    names = _names_below(path, Path(*parts[:fixed]))
    return names is not None and _matches(names, parts[fixed:])


def _names_below(path: str | Path, folder: str | Path) -> tuple[str, ...] | None:
    """The names that lead from `folder` to `path`; None where it is elsewhere."""
    real = Path(os.path.realpath(path))
    for parent in (real, *real.parents):
        try:
            if os.path.samefile(parent, folder):
                return real.relative_to(parent).parts
        except OSError:  # one of them is not there
            continue
    return None


def _matches(names: Sequence[str], parts: Sequence[str]) -> bool:
    if not parts or not names:
        return not names and all(part == "**" for part in parts)
    if parts[0] == "**":
        return _matches(names, parts[1:]) or _matches(names[1:], parts)
    return fnmatch(names[0], parts[0]) and _matches(names[1:], parts[1:])
