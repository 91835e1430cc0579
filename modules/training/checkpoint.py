"""Checkpoints that are either complete or not there, and that resume bit for bit.

A checkpoint is accelerate's state of both networks, optimizers, schedulers and the random
generators of every process, the moving average, and `trainer_state.json`. It is written beside
its final name, listed with checksums in `manifest.json`, flushed to disk, and only then renamed.
Nothing in it is read with pickle's full powers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import SCALER_NAME, gather_object, load
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from modules.errors import ArgumentError, RunStopped
from modules.output.durable import flush
from modules.output.owned_files import free_name, remove
from modules.output.run_files import IN_A_CHECKPOINT, STEP, find
from modules.training.ema import ExponentialMovingAverage

logger = logging.getLogger(__name__)

MANIFEST, TRAINER_STATE, EMA_WEIGHTS = "manifest.json", "trainer_state.json", "ema.safetensors"


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
            actual = _sha256(path / name)
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
        _remove(checkpoint_path(folder, old))


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    step: int,
    ema: ExponentialMovingAverage | None,
    trainer_state: dict[str, Any],
    keep: int | None,
) -> Path:
    """Writes `folder`/step-<step>, then removes all but the newest `keep`. Collective.

    Raises RunStopped on every process when one of them could not write (a full or read-only disk);
    the checkpoints that were there before are untouched then.
    """
    final = checkpoint_path(folder, step)
    partial = folder / f".partial-{final.name}"
    with _failing_together(accelerator, f"checkpoint {final} could not be written"):
        if accelerator.is_main_process:
            clear_debris(folder)
            partial.mkdir(parents=True)
    with _failing_together(accelerator, f"checkpoint {final} could not be written"):
        accelerator.save_state(str(partial))
    with _failing_together(accelerator, f"checkpoint {final} could not be written"):
        if accelerator.is_main_process:
            if ema is not None:
                save_file(_contiguous(ema.state_dict()), partial / EMA_WEIGHTS)
            state = json.dumps(trainer_state, indent=1, allow_nan=False)
            (partial / TRAINER_STATE).write_text(state, encoding="utf-8")
            _seal(partial)
            _remove(final)
            os.replace(partial, final)
            flush(folder)
            rotate(folder, step, keep)
    return final


def read_trainer_state(path: Path) -> dict[str, Any]:
    """The checkpoint's trainer_state.json."""
    return json.loads((path / TRAINER_STATE).read_text(encoding="utf-8"))


def load_checkpoint(
    accelerator: Accelerator, path: Path, ema: ExponentialMovingAverage | None
) -> None:
    """Restores networks, optimizers, schedulers, random generators and EMA from a verified folder.

    Raises ArgumentError when the run wants an average that the checkpoint does not hold, or when a
    file of it holds objects that could run code: it is not a checkpoint of ours.
    """
    if ema is not None and not (path / EMA_WEIGHTS).exists():
        raise ArgumentError(
            f"--resume_from_checkpoint={path} was trained without --use_ema; add --no_use_ema"
        )
    try:
        if ema is not None:
            ema.load_state_dict(load_file(path / EMA_WEIGHTS))
        for file in sorted(path.glob("random_states_*.pkl")):
            load(file)  # accelerate itself passes over one that it cannot read
        with _loss_scale_if_kept(accelerator, path):
            accelerator.load_state(str(path), load_kwargs={"weights_only": True})
    except (pickle.UnpicklingError, EOFError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArgumentError(
            f"--resume_from_checkpoint={path} is refused: a file of it is not what this program "
            f"writes, and could run code when read; give another checkpoint ({reason})"
        ) from error
    accelerator.step = 0  # a checkpoint lies between two accumulation windows


@contextmanager
def _loss_scale_if_kept(accelerator: Accelerator, path: Path) -> Iterator[None]:
    """A run that turns to float16 has a loss scale that the checkpoint does not know."""
    scaler = accelerator.scaler
    if not (path / SCALER_NAME).exists():
        accelerator.scaler = None
    try:
        yield
    finally:
        accelerator.scaler = scaler


@contextmanager
def _failing_together(accelerator: Accelerator, message: str) -> Iterator[None]:
    """A failure to write in one process stops all of them, instead of leaving the rest waiting."""
    failure = None
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save raises RuntimeError
        failure = f"{type(error).__name__}: {error}"
    failures = [failure for failure in gather_object([failure]) if failure is not None]
    if failures:
        raise RunStopped(f"{message} ({failures[0]}); earlier checkpoints are intact")


def _seal(folder: Path) -> None:
    """Flushes every file to disk and writes the manifest of their checksums."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    checksums = {file.name: _sha256(file) for file in files}
    (folder / MANIFEST).write_text(json.dumps(checksums, indent=1), encoding="utf-8")
    for file in [*files, folder / MANIFEST]:
        flush(file)
    flush(folder)


def _remove(path: Path) -> None:
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


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _contiguous(state: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.contiguous() for name, tensor in state.items()}
