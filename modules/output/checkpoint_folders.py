"""Folders of checkpoints: which there are, whether they are whole, and how old ones go."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from modules.output.durable import sha256
from modules.output.owned_files import free_name, remove
from modules.output.run_files import IN_A_CHECKPOINT, STEP, find

logger = logging.getLogger(__name__)

MANIFEST, TRAINER_STATE = "manifest.json", "trainer_state.json"


class DamagedCheckpoint(ValueError):
    """A checkpoint folder whose files are not those that were written."""


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps that have a finished checkpoint in `folder`, ascending."""
    found = (path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name))
    return sorted(int(path.name[5:]) for path in found if path.is_dir())


def checkpoint_path(folder: Path, step: int) -> Path:
    """`folder`/step-000123."""
    return folder / f"step-{step:06d}"


def is_checkpoint_of(path: Path, output_dir: Path) -> bool:
    """Whether `path` is one of the run in `output_dir`; either may be a link, to another disk."""
    return (output_dir / "checkpoints").resolve() in (path.resolve().parent, path.parent.resolve())


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest undamaged checkpoint, or None; damaged ones are named in the log."""
    for step in reversed(checkpoint_steps(folder)):
        path = checkpoint_path(folder, step)
        try:
            verify(path)
        except DamagedCheckpoint as error:
            logger.warning("%s; trying the one before it", error)
        else:
            return path
    return None


def verify(path: Path) -> None:
    """Compares every file with the manifest. Raises DamagedCheckpoint for the first to differ."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or TRAINER_STATE not in manifest:
            raise ValueError(f"it does not list {TRAINER_STATE}")
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{path} has no readable {MANIFEST} ({error})") from None
    for name, expected in manifest.items():
        try:
            actual = sha256(path / name)
        except OSError as error:
            raise DamagedCheckpoint(f"{path / name} cannot be read ({error})") from None
        if actual != expected:
            raise DamagedCheckpoint(f"{path / name} is damaged: its checksum does not match")


def clear_debris(folder: Path) -> None:
    """Deletes what a process left that was killed while it wrote or removed a checkpoint."""
    for path in find(folder, [f".partial-step-{STEP}"]):
        remove(path)
    for path in find(folder, [f".deleted-step-{STEP}"]):
        _empty(path)


def rotate(folder: Path, step: int, keep: int | None) -> None:
    """Removes all but the newest `keep` checkpoints up to `step`, the newest undamaged one."""
    # A later one is damaged, or `step` would not be the newest: it must not push out a good one.
    finished = [other for other in checkpoint_steps(folder) if other <= step]
    for old in finished[: -keep if keep else 0]:
        remove_checkpoint(checkpoint_path(folder, old))


def read_trainer_state(path: Path) -> dict[str, Any]:
    """The checkpoint's trainer_state.json."""
    return json.loads((path / TRAINER_STATE).read_text(encoding="utf-8"))


def remove_checkpoint(path: Path) -> None:
    """Deletes a checkpoint; its name goes first, so that no half of it is ever taken for one."""
    if os.path.lexists(path):
        doomed = path.with_name(f".deleted-{path.name}")
        if os.path.lexists(doomed):
            _empty(doomed)
        os.replace(path, doomed)
        _empty(doomed)


def _empty(doomed: Path) -> None:
    """Deletes a folder or a link to one; what others have put into it stays, under another name."""
    if not doomed.is_symlink():
        for path in find(doomed, IN_A_CHECKPOINT):
            remove(path)
        if doomed.is_file() or any(doomed.iterdir()):
            kept = free_name(doomed.with_name(doomed.name.removeprefix(".deleted-")))
            os.replace(doomed, kept)
            logger.warning("files that are not of the run were in a checkpoint: kept in %s", kept)
            return
    remove(doomed)
