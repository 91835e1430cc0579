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
from modules.config.objective import GAN_LENGTHS, DiscriminatorArguments
from modules.data.images.image_kinds import suffixes
from modules.data.sources.folder_walk import files_below

NUM_SYNTHETIC_IMAGES = 10_000
NUM_HELD_BACK = 64
NAMES = 9  # characters of the longest name of a line


def outline(args: Arguments) -> str:
    """Images, steps, the GAN's start, and the flags that differ from the defaults, all or these."""
    opt, lines = args.optimization, {}
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
    if args.launch.recipes:
        lines["Recipe"] = recipe_line(args)
    lines["Training"] = (
        f"{', '.join(args.data.dataset_name or (args.data.train_data_dir,))}: {count}"
    )
    lines["Steps"] = steps_line(args, steps)
    lines["Optimizer"] = optimizer_line(args, processes)
    lines["GAN"] = gan_line(args.discriminator, steps)
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
    validation = args.validation
    elsewhere = (validation.validation_image, validation.validation_data_dir,
                 validation.validation_split)  # fmt: skip
    if any(elsewhere):
        return 0
    count = validation.num_validation_images
    return NUM_HELD_BACK if count is None else count


def recipe_line(args: Arguments) -> str:
    """The recipes, the strongest last."""
    return " + ".join(args.launch.recipes)


def steps_line(args: Arguments, max_train_steps: int | None) -> str:
    """Optimizer steps, and the images of one."""
    opt = args.optimization
    epochs = f"{opt.num_train_epochs} epochs, in steps"
    steps = epochs if max_train_steps is None else f"{max_train_steps:,}"
    return (
        f"{steps} of {opt.train_batch_size} images x {opt.gradient_accumulation_steps} accumulated "
        "on each device"
    )


def optimizer_line(args: Arguments, processes: int) -> str:
    """The VAE's learning rate at its peak, its schedule, and the average's half-life."""
    opt, rate = args.optimization, args.peak_rates[0]
    rate *= opt.images_per_step(processes) if opt.scale_lr else 1
    average = f", averaged with a half-life of {opt.ema_half_life:.0%} of the updates"
    return f"AdamW at {rate:g}, {opt.lr_scheduler}" + (average if opt.use_ema else "")


def gan_line(
    disc: DiscriminatorArguments, max_train_steps: int | None, lengths: Iterable[int] | None = None
) -> str:
    """When the GAN comes on, if it does. lengths: in steps, where a run has settled them."""
    if not disc.enabled:
        return "off"
    if max_train_steps is None:  # and what is a share of it
        return " ".join(f"--{name} {getattr(disc, name)}" for name in GAN_LENGTHS)
    start, felt, full = accumulate(lengths or disc.lengths(max_train_steps).values())
    if start >= max_train_steps:
        return f"never starts: --disc_start={disc.disc_start} lies after the last step"
    return f"discriminator trains from step {start}, is felt from {felt}, in full from {full}"


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
