"""Folders and files that must not overlap, compared as what they are, whatever their names are."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path


def lies_in(path: str | Path, folder: str | Path) -> bool:
    """Whether `path`, which need not exist yet, is `folder` or below it, whatever links lead there.

    False where there is no such folder.
    """
    try:
        wanted = os.stat(folder)
    except OSError:
        return False
    real = Path(os.path.realpath(path))
    return any(_is(parent, wanted) for parent in (real, *real.parents))


def would_match(path: str | Path, pattern: str) -> bool:
    """Whether a glob pattern would find `path`, which need not exist yet, through whatever links.

    `**` stands for folders of any depth and, at the end, for all that is in them.
    """
    parts = Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    folder = os.path.realpath(os.path.join("", *parts[:fixed]))
    rest = os.path.relpath(os.path.realpath(path), folder).split(os.sep)
    return rest[0] != os.pardir and _matches(rest, parts[fixed:])


def _matches(names: Sequence[str], parts: Sequence[str]) -> bool:
    if not parts or not names:
        return not names and all(part == "**" for part in parts)
    if parts[0] == "**":
        return _matches(names, parts[1:]) or _matches(names[1:], parts)
    return fnmatch(names[0], parts[0]) and _matches(names[1:], parts[1:])


def _is(path: Path, wanted: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), wanted)
    except OSError:
        return False
