"""What flags and folders alone say of a run, before anything slow is imported."""

from __future__ import annotations

import os
import shlex
from collections.abc import Container, Iterable, Mapping
from itertools import accumulate

from modules.config.arguments import FLAGS, Arguments
from modules.config.command_line import to_yaml
from modules.config.inputs import DataArguments
from modules.config.limits import require
from modules.config.objective import GAN_LENGTHS
from modules.data.images.image_kinds import suffixes
from modules.data.sources.folder_walk import files_below

NUM_SYNTHETIC_IMAGES = 10_000
NUM_HELD_BACK = 64
NAMES = 9  # characters of the longest name of a line


def outline(args: Arguments) -> str:
    """Images, steps, the GAN's start, and the flags that differ from the defaults, all or these."""
    opt = args.optimization
    found, processes = count_images(args.data), int(os.environ.get("WORLD_SIZE", "1"))
    steps, count, kept = opt.max_train_steps, "not counted in a dry run", ""
    if found is not None:
        trained = found - held_back(args)
        require(trained > 0, "num_validation_images", found - trained,
                f"leaves nothing to train on of {found} images; lower it, or name a validation set "
                "with --validation_data_dir")  # fmt: skip
        count = f"{trained:,} images to train on, {found - trained:,} held back for validation"
        if steps is None:
            steps = -(-opt.num_train_epochs * trained // opt.images_per_step(processes))
    name = ", ".join(args.data.dataset_name or (args.data.train_data_dir,))
    lines = recipe_line(args) | plan_lines(args, f"{name}: {count}", steps, processes)
    if args.launch.dry_run == "short":
        lines["Flags"] = "  ".join(changed_flags(args)) or "the defaults"
        kept = "\n" + " " * NAMES + "  (these differ from the defaults; all: --dry_run full)"
    configuration = to_yaml(args) if args.launch.dry_run == "full" else ""
    return f"{configuration}{aligned(lines)}{kept}"


def aligned(lines: Mapping[str, str]) -> str:
    """`lines` by name, below each other."""
    return "\n".join(f"{name:>{NAMES}}  {text}" for name, text in lines.items())


def count_images(data: DataArguments) -> int | None:
    """Pictures of a folder or of the synthetic set; None for what `datasets` must open."""
    if data.dataset_name == ("synthetic",):
        found = NUM_SYNTHETIC_IMAGES
    elif data.dataset_name:
        return None
    else:
        files = files_below(data.train_data_dir)
        found = sum(os.path.splitext(file.path)[1].lower() in suffixes() for file in files)
    return min(found, data.max_train_samples or found)


def held_back(args: Arguments) -> int:
    """Training images that validation takes for itself."""
    validation, count = args.validation, args.validation.num_validation_images
    if validation.sources:
        return 0
    return NUM_HELD_BACK if count is None else count


def recipe_line(args: Arguments) -> dict[str, str]:
    """The recipes, the strongest last; no line where there are none."""
    return {"Recipe": " + ".join(args.launch.recipes)} if args.launch.recipes else {}


def plan_lines(
    args: Arguments,
    images: str,
    steps: int | None,
    processes: int,
    gan: Iterable[int] | None = None,
) -> dict[str, str]:
    """Images, steps, learning rate and when the GAN comes on, by line.

    steps: None where an epoch's are not known yet. gan: its lengths in steps, where a run has
    settled them.
    """
    opt, rate = args.optimization, args.peak_rates[0]
    rate *= opt.images_per_step(processes) if opt.scale_lr else 1
    average = f", averaged with a half-life of {opt.ema_half_life:.0%} of the updates"
    length = f"{opt.num_train_epochs} epochs, in steps" if steps is None else f"{steps:,}"
    return {
        "Training": images,
        "Steps": f"{length} of {opt.train_batch_size} images x {opt.gradient_accumulation_steps} "
        "accumulated on each device",
        "Optimizer": f"AdamW at {rate:g}, {opt.lr_scheduler}" + (average if opt.use_ema else ""),
        "GAN": _gan(args, steps, gan),
    }


def _gan(args: Arguments, steps: int | None, lengths: Iterable[int] | None) -> str:
    disc = args.discriminator
    if not disc.enabled:
        return "off"
    if steps is None:  # and what is a share of it
        return " ".join(f"--{name} {getattr(disc, name)}" for name in GAN_LENGTHS)
    start, felt, full = accumulate(lengths or disc.lengths(steps).values())
    if start >= steps:
        return f"never starts: --disc_start={disc.disc_start} lies after the last step"
    of = f"{args.losses.lpips_backbone}'s features" if args.disc_type == "features" else "patches"
    when = f"trains from step {start}, is felt from {felt}, in full from {full}"
    return f"discriminator of {of} {when}"


def changed_flags(
    args: Arguments, paths: bool = True, among: Container[str] | None = None
) -> list[str]:
    """The flags that differ from the defaults, as one types them; secrets are never among them.

    paths: also those that name places on this machine, of which the world need not know.
    among: of these names only.
    """
    return [
        _typed(name, value)
        for name, value in args.as_dict().items()
        if value != FLAGS[name].default
        and (paths or not FLAGS[name].metadata["limits"].path)
        and (among is None or name in among)
    ]


def _typed(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no_{name}"
    parts = value if isinstance(value, tuple) else (value,)
    return f"--{name} {shlex.join(map(str, parts))}"
