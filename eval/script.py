"""The training script, loaded as the file it is: what is measured here is what users run.

Nothing in `eval` imports the script, which imports `eval`. Its loop is the object of measurement,
as a model's file is elsewhere, and is opened by path when a measurement begins.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from modules.arguments import Arguments
from modules.command_line import resolve_arguments
from modules.run import Run

SCRIPT = Path(__file__).parent.parent / "train_vae.py"
NEVER = 10**12  # steps


def training_script() -> ModuleType:
    """train_vae.py as a module, of which `make_run(args, vae, size)` and `train(run, watch)`."""
    spec = importlib.util.spec_from_file_location("measured_train_vae", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look up their annotations
    spec.loader.exec_module(module)
    return module


def measured_arguments(training_flags: Sequence[str]) -> Arguments:
    """The script's arguments, but nothing is logged, validated or saved between steps.

    Precision is bfloat16 unless a flag or the recipe says otherwise, as in accelerate_config.yaml.
    Raises ArgumentError naming flag, value and fix.
    """
    quiet = f"--report_to none --num_validation_images 0 --logging_steps {NEVER} "
    quiet += f"--validation_steps {NEVER} --checkpointing_steps {NEVER}"
    args = resolve_arguments([*training_flags, *quiet.split()])
    if args.precision.mixed_precision is None:
        args = replace(args, precision=replace(args.precision, mixed_precision="bf16"))
    return args


def skip_to_full_gan(run: Run) -> None:
    """Sets the clock to where every term counts, with no end in sight: the most expensive step."""
    disc = run.args.discriminator
    run.step = disc.disc_start + disc.disc_warmup_steps + disc.disc_ramp_steps
    run.step += run.step % 2  # the VAE's turn, if they take turns
    run.max_train_steps = NEVER


class Nobody:
    """Stands for the script's `Watch`: looks at nothing and never asks to stop."""

    def __init__(self) -> None:
        self.journal = self.stop = self
        self.publisher = self.validation = None

    def agreed(self) -> bool:
        """Whether to stop: no."""
        return False

    def advance(self) -> None:
        """A step is complete."""
