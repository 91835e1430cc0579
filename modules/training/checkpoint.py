"""Checkpoints that are either complete or not there, and that resume bit for bit.

A checkpoint is accelerate's state of both networks, optimizers, schedulers and the random
generators of every process, the moving average, and `trainer_state.json`. It is written beside
its final name, listed with checksums in `manifest.json`, flushed to disk, and only then renamed.
Nothing in it is read with pickle's full powers.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import SCALER_NAME, gather_object, load
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from modules.errors import ArgumentError, RunStopped
from modules.output.checkpoint_folders import (
    MANIFEST,
    TRAINER_STATE,
    checkpoint_path,
    clear_debris,
    remove_checkpoint,
    rotate,
)
from modules.output.durable import flush, sha256
from modules.training.ema import ExponentialMovingAverage

EMA_WEIGHTS = "ema.safetensors"
DISCRIMINATOR = "model_1.safetensors"  # accelerate's name for the second network


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
    message = f"checkpoint {final} could not be written"
    with _failing_together(accelerator, message):
        if accelerator.is_main_process:
            clear_debris(folder)
            partial.mkdir(parents=True)
    with _failing_together(accelerator, message):
        accelerator.save_state(str(partial))
    with _failing_together(accelerator, message):
        if accelerator.is_main_process:
            if ema is not None:
                averages = {name: tensor.contiguous() for name, tensor in ema.state_dict().items()}
                save_file(averages, partial / EMA_WEIGHTS)
            state = json.dumps(trainer_state, indent=1, allow_nan=False)
            (partial / TRAINER_STATE).write_text(state, encoding="utf-8")
            _seal(partial)
            remove_checkpoint(final)
            os.replace(partial, final)
            flush(folder)
            rotate(folder, step, keep)
    return final


def leave_out_discriminator(accelerator: Accelerator) -> None:
    """From here on checkpoints hold none: of a run without a GAN it would be as it was drawn."""
    accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.pop())


def load_checkpoint(
    accelerator: Accelerator, path: Path, ema: ExponentialMovingAverage | None
) -> None:
    """Restores networks, optimizers, schedulers, random generators and EMA from a verified folder.

    Raises ArgumentError when the run wants an average that the checkpoint does not hold, or when a
    file of it holds objects that could run code: it is not a checkpoint of ours. A discriminator
    that the checkpoint does not hold stays as it is.
    """
    if ema is not None and not (path / EMA_WEIGHTS).exists():
        raise ArgumentError(
            f"--resume_from_checkpoint={path} was trained without --use_ema; add --no_use_ema"
        )
    kept, scaler = (path / DISCRIMINATOR).exists(), accelerator.scaler
    hook = accelerator.register_load_state_pre_hook(lambda nets, _: None if kept else nets.pop())
    try:
        if ema is not None:
            ema.load_state_dict(load_file(path / EMA_WEIGHTS))
        for file in sorted(path.glob("random_states_*.pkl")):
            load(file)  # accelerate itself passes over one that it cannot read
        if not (path / SCALER_NAME).exists():  # of a run that turns to float16 only now
            accelerator.scaler = None
        accelerator.load_state(str(path), load_kwargs={"weights_only": True})
    except (pickle.UnpicklingError, EOFError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArgumentError(
            f"--resume_from_checkpoint={path} is refused: a file of it is not what this program "
            f"writes, and could run code when read; give another checkpoint ({reason})"
        ) from error
    finally:
        hook.remove()
        accelerator.scaler = scaler
    accelerator.step = 0  # a checkpoint lies between two accumulation windows


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
    checksums = {file.name: sha256(file) for file in files}
    (folder / MANIFEST).write_text(json.dumps(checksums, indent=1), encoding="utf-8")
    for file in [*files, folder / MANIFEST]:
        flush(file)
    flush(folder)
