"""What is compared: arms of the trainer, each a name with flags, and peers, each with a command."""

from __future__ import annotations

import re
import shlex
import string
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modules.builders.first_checks import check_places
from modules.config.arguments import Arguments
from modules.config.command_line import resolve_arguments
from modules.config.limits import shown
from modules.errors import ArgumentError

SCRIPT = Path(__file__).parents[2] / "train_vae.py"
PRESETS = {
    # Minutes on one core: f8c4 of 0.94 M parameters at 64².
    "cpu": "--resolution 64 --block_out_channels 16 32 64 64 --layers_per_block 1 "
    "--norm_num_groups 2 --no_mid_block_add_attention --train_batch_size 4 --max_train_steps 800 "
    "--mixed_precision no --perceptual_scale 0 --disc_factor 0 --logging_steps 20 "
    "--validation_steps 100 --checkpointing_steps 1000000 --num_latent_images 64",
    # 38,400 images through the SD 1.5 VAE: about 8 minutes on a card of 80 images/s.
    "gpu": "--resolution 256 --train_batch_size 16 --max_train_steps 2400 --mixed_precision bf16 "
    "--allow_tf32 --recompute none --perceptual_scale 0 --disc_factor 0 --validation_steps 400 "
    "--checkpointing_steps 1000000 --num_latent_images 64 --dataloader_num_workers 8",
}
SET_HERE = {"--seed", "--output_dir", "--resume_from_checkpoint", "--push_to_hub", "--dry_run"}
PLACES = ("data", "validation", "steps", "seed", "output", "batch_size", "resolution")


@dataclass(frozen=True)
class Arm:
    """`words`: flags of train_vae.py, or of a peer its command, in which {PLACES} are filled in."""

    name: str
    words: tuple[str, ...]
    peer: bool = False

    def command(self, common: Sequence[str], seed: int, output: Path) -> list[str]:
        """What trains it with this seed into this folder. common: flags that all arms share."""
        if not self.peer:
            own = ["--seed", str(seed), "--output_dir", str(output), "--overwrite_output_dir"]
            return [sys.executable, str(SCRIPT), *common, *self.words, *own]
        args = resolve_arguments(common)
        values = {
            "data": args.data.train_data_dir,
            "validation": args.validation.validation_data_dir,
            "steps": args.optimization.max_train_steps,
            "seed": seed,
            "output": output,
            "batch_size": args.optimization.images_per_step(1),
            "resolution": args.data.resolution,
        }
        return [word.format_map(values) for word in self.words]


def read_arm(text: str, peer: bool = False) -> Arm:
    """ "name: words" as they stand in --arm, or in --peer. Raises ArgumentError."""
    flag = "peer" if peer else "arm"
    name, colon, words = text.partition(":")
    if not colon or not re.fullmatch(r"\w[\w.+ -]*", name):
        raise ArgumentError(f'--{flag}={shown(text)} must be "name: ..." with a name of letters, '
                            "digits, spaces and ._+-, which is also its folder's")  # fmt: skip
    try:
        arm = Arm(name.strip(), tuple(shlex.split(words)), peer)
        places = {place for word in arm.words for _, place, *_ in string.Formatter().parse(word)}
    except ValueError as error:
        raise ArgumentError(f"--{flag}={shown(text)}: {error}; mend the quotes") from error
    if peer and ("output" not in places or places - {None, *PLACES}):
        raise ArgumentError(
            f"--peer={shown(text)} must leave its model in {{output}}, and may use "
            + ", ".join(f"{{{place}}}" for place in PLACES)
        )
    return arm


def check_arms(arms: Sequence[Arm], common: Sequence[str]) -> Arguments:
    """The arguments that all arms share. Raises ArgumentError for what would fail in training."""
    if not arms:
        raise ArgumentError('there is nothing to train: give --arm "name: flags"')
    names = [arm.name for arm in arms]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ArgumentError(f"--arm and --peer name {', '.join(twice)} twice; use other names")
    args = resolve_arguments(common)
    missing = {
        "validation_data_dir": args.validation.validation_data_dir,
        "max_train_steps": args.optimization.max_train_steps,
        "train_data_dir": args.data.train_data_dir or not any(arm.peer for arm in arms),
    }
    for flag, value in missing.items():
        if not value:
            raise ArgumentError(f"--{flag} is missing; arms are compared by it")
    check_places(args)
    for arm in (arm for arm in arms if not arm.peer):
        words = [*common, *arm.words]
        if set_here := SET_HERE.intersection(word.split("=")[0] for word in words):
            raise ArgumentError(
                f"--arm {arm.name!r}: {min(set_here)} is set here; use --seeds and --output_dir"
            )
        try:
            check_places(resolve_arguments(words))
        except ArgumentError as error:
            raise ArgumentError(f"--arm {arm.name!r}: {error}") from error
    return args
