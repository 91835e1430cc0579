"""TensorBoard, Weights & Biases and the like: how they start, what they are sent, how they end.

Which numbers they get is decided elsewhere: to add one, add an entry to `means` in `log` of
train_vae.py.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL import Image

from modules.errors import ArgumentError, dispensable


def start_trackers(
    accelerator: Accelerator, project: str, config: Mapping[str, Any], step: int
) -> None:
    """Starts what --report_to names, on the main process, at `step`; 0 is a new run.

    A run that was killed writes the rows after `step` again. TensorBoard hides the first copy. In
    Weights & Biases the same run goes on, and an online one keeps the first copy and ignores the
    second. Raises ArgumentError when wandb does not start, as without a login.
    """
    if not accelerator.is_main_process:
        return
    refusals: tuple[type[Exception], ...] = ()
    if "wandb" in map(str, accelerator.log_with):
        from wandb.errors import Error as WandbError

        refusals = (WandbError,)
        _prepare_wandb(Path(accelerator.logging_dir), Path(accelerator.project_dir).name, step)
    try:
        purge = {"purge_step": step + 1 if step else 0}
        accelerator.init_trackers(project, config, {"tensorboard": purge})
    except refusals as error:
        raise ArgumentError(
            f"--report_to: Weights & Biases does not start ({error}); log in with `wandb login`, "
            "set WANDB_MODE=offline, or use --report_to tensorboard"
        ) from error


def _prepare_wandb(folder: Path, name: str, step: int) -> None:
    """Its files beside the other logs, the run's id across resumes, and no long farewell.

    What the launch's environment says goes before all of it; a sweep's agent sets some.
    """
    folder.mkdir(parents=True, exist_ok=True)  # wandb would go elsewhere
    file = folder / "wandb_run_id.txt"
    known = file.read_bytes() if step and file.exists() else b""
    if not re.fullmatch(rb"[0-9a-f]{8}", known):  # a new run, or a damaged file
        known = secrets.token_hex(4).encode()
        file.write_bytes(known)
    chosen = {"WANDB_DIR": str(folder), "WANDB_RUN_ID": known.decode(), "WANDB_NAME": name,
              "WANDB_RESUME": "allow", "WANDB_QUIET": "true"}  # fmt: skip
    for variable, value in chosen.items():
        os.environ.setdefault(variable, value)


def send_numbers(
    trackers: Iterable[GeneralTracker], values: Mapping[str, float], step: int
) -> None:
    """Gives named numbers to the trackers. One that fails, as without a network, ends no run."""
    for tracker in trackers:
        with dispensable(tracker.name, Exception):
            tracker.log(values, step=step)


def send_picture(
    trackers: Iterable[GeneralTracker], name: str, picture: Image.Image, step: int
) -> None:
    """Gives an RGB picture to the trackers that take pictures; the others go without."""
    pixels = np.asarray(picture)[None]
    for tracker in trackers:
        with dispensable(tracker.name, Exception):
            if tracker.name == "tensorboard":
                tracker.log_images({name: pixels}, step=step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({name: pixels}, step=step)


def send_histograms(
    trackers: Iterable[GeneralTracker], values: Mapping[str, np.ndarray], step: int
) -> None:
    """Gives the distribution of finite values, by name, to TensorBoard and Weights & Biases.

    Other trackers go without, and so does a name whose array is empty.
    """
    present = {name: array for name, array in values.items() if array.size}
    for tracker in trackers:
        with dispensable(tracker.name, Exception):
            if tracker.name == "tensorboard":
                for name, array in present.items():
                    tracker.writer.add_histogram(name, array, global_step=step)
            elif tracker.name == "wandb":
                from wandb import Histogram

                tracker.log({name: Histogram(array) for name, array in present.items()}, step=step)


def end_trackers(trackers: list[GeneralTracker]) -> None:
    """Lets them send what they hold, and leaves none in the list."""
    while trackers:
        tracker = trackers.pop()
        with dispensable(tracker.name, Exception):
            tracker.finish()
