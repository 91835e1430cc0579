"""Every flag, its default and its rules: frozen dataclasses, one for each group of `--help`.

Only the script and the builders see these objects; everything else takes plain values. Each group
checks its own flags, `Arguments` what they mean together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any, get_type_hints

from modules.config.inputs import DataArguments, ModelArguments
from modules.config.limits import require
from modules.config.objective import DiscriminatorArguments, LossArguments
from modules.config.optimization import OptimizationArguments, PrecisionArguments
from modules.config.outputs import CheckpointArguments, LoggingArguments, ValidationArguments
from modules.config.smallest_sides import LPIPS, SSIM_WINDOW, discriminator_side, require_side
from modules.errors import ArgumentError

# Never written to train_config.yaml: secrets, and what describes this launch rather than the run.
LAUNCH_ONLY = ("hub_token", "resume_from_checkpoint", "overwrite_output_dir")


@dataclass(frozen=True)
class Launch:
    """What was typed beside the values of flags: of this launch, and no part of what the run is.

    dry_run: "short", "full" or None. given: the flags that the user named, in a file or on the
    command line, and not a recipe alone. command: as typed, from the launcher on.
    """

    dry_run: str | None = None
    recipes: tuple[str, ...] = ()
    given: frozenset[str] = frozenset()
    command: tuple[str, ...] = ("python", "train_vae.py")


FROM_SCRATCH, FINE_TUNING = 1e-4, 4.5e-6  # learning rates; the latter is also --scale_lr's base


@dataclass(frozen=True)
class Arguments:
    """Everything a run is told, by group."""

    model: ModelArguments
    data: DataArguments
    losses: LossArguments
    discriminator: DiscriminatorArguments
    optimization: OptimizationArguments
    precision: PrecisionArguments
    validation: ValidationArguments
    checkpoints: CheckpointArguments
    logging: LoggingArguments
    launch: Launch = field(default=Launch(), compare=False)

    def __post_init__(self) -> None:
        model, data, validation = self.model, self.data, self.validation
        if not (model.pretrained_model_name_or_path or model.model_config_name_or_path):
            data.require_divisible(
                model.downsample_factor, f"--downsample_factor={model.downsample_factor}"
            )
            self.require_scales(model.downsample_factor)
        self.require_sides()
        self._require_discriminator()
        if data.streaming and self.optimization.max_train_steps is None:
            raise ArgumentError(
                "--streaming needs --max_train_steps: a stream does not say how long an epoch is"
            )
        if data.train_split != "train" and not data.dataset_name:
            raise ArgumentError(
                f"--train_split={data.train_split} needs --dataset_name; folders have no splits"
            )
        if split := validation.validation_split:
            names = data.dataset_name or ()
            require(len(names) > 0, "validation_split", split,
                    "needs --dataset_name; for a folder use --validation_data_dir")  # fmt: skip
            require(split != data.train_split, "validation_split", split,
                    f"has images of --train_split={split}; name another split, or drop the flag "
                    "to hold images back")  # fmt: skip
            require(len(names) == 1, "validation_split", split,
                    "cannot be used with several --dataset_name; use --validation_data_dir, or "
                    "hold images back")  # fmt: skip
        if validation.num_validation_images == 0:
            every, stopping = self.logging.push_every, validation.early_stopping
            require(every is None, "push_every", every,
                    "uploads the best weights so far, which --num_validation_images=0 never "
                    "finds; let it validate, or drop --push_every")  # fmt: skip
            require(not stopping, "early_stopping", stopping,
                    "counts validations, of which --num_validation_images=0 makes none; let it "
                    "validate, or drop --early_stopping")  # fmt: skip
        best, metrics = validation.best_metric, self.validation_metrics
        require(best in metrics, "best_metric", best,
                f"is not measured: --validation_metrics are {' '.join(metrics)} here; add it to "
                "them, or choose one of these")  # fmt: skip

    def _require_discriminator(self) -> None:
        """The norm has what it needs, and layers are a patch discriminator's; ArgumentError."""
        disc, default = self.discriminator, DiscriminatorArguments.disc_num_layers
        if disc.disc_norm_type == "batch" and disc.enabled:
            require(self.optimization.train_batch_size > 1, "disc_norm_type", "batch",
                    "needs --train_batch_size of at least 2: the statistics of one image erase "
                    "it; use --disc_norm_type=spectral_group")  # fmt: skip
        patch = self.disc_type == "patch"
        require(patch or disc.disc_num_layers == default, "disc_num_layers", disc.disc_num_layers,
                "means layers of a patch discriminator: add --disc_type patch")  # fmt: skip
        # The first layer of a patch discriminator has no norm.
        width, twice = disc.disc_hidden_channels * (1 + patch), "twice " if patch else ""
        require("group" not in disc.disc_norm_type or width % disc.disc_num_groups == 0,
                "disc_num_groups", disc.disc_num_groups, "must divide "
                f"{twice}--disc_hidden_channels={disc.disc_hidden_channels}")  # fmt: skip

    def require_sides(self, narrowest: int | None = None) -> None:
        """Training and validation images must be large enough for what looks at them.

        narrowest: shorter side of the narrowest training image, by default the smallest
        resolution. Raises ArgumentError with the numbers.
        """
        smallest = narrowest or min(self.data.training_resolutions)
        require_side(smallest, self._trained_at(narrowest), self._training_onlookers())
        if self.validation.num_validation_images != 0:
            resolution = self.data.resolution
            require_side(resolution, f"--resolution={resolution}", self._validation_onlookers())

    def require_scales(self, factor: int, narrowest: int | None = None) -> None:
        """--eq_prob needs a smaller image of whole latents; ArgumentError with the numbers.

        factor: pixels of a latent's side. narrowest: as of `require_sides`.
        """
        side = (narrowest or min(self.data.training_resolutions)) - factor
        for what, smallest, _ in [("a latent", factor, ""), *self._training_onlookers()]:
            require(
                self.losses.eq_prob == 0 or side >= smallest,
                "eq_prob",
                self.losses.eq_prob,
                f"scales images to fewer latents: {self._trained_at(narrowest)} leaves {side} "
                f"pixels at most, and {what} needs {smallest}; raise that, or drop --eq_prob",
            )

    @property
    def smallest_side(self) -> int:
        """Of training images, in pixels, that everything can look at which has to."""
        return max((side for _, side, _ in self._training_onlookers()), default=1)

    def _training_onlookers(self) -> list[tuple[str, int, str]]:
        """What looks at training images, as `require_side` takes it."""
        disc, losses, steps = self.discriminator, self.losses, self.optimization.max_train_steps
        found = []
        if losses.perceptual_scale > 0:
            found.append((*self._lpips, "drop LPIPS: --perceptual_scale 0"))
        if disc.enabled and (steps is None or disc.lengths(steps)["disc_start"] < steps):
            if self.disc_type == "features":
                found.append((*self._lpips, "choose --disc_type patch"))
            else:
                name = f"a discriminator with --disc_num_layers={disc.disc_num_layers}"
                found.append((name, discriminator_side(disc.disc_num_layers), "lower that"))
        return found

    def _validation_onlookers(self) -> list[tuple[str, int, str]]:
        without = "leave it out of --validation_metrics"
        measured = {"ssim": ("SSIM", SSIM_WINDOW, without), "lpips": (*self._lpips, without)}
        return [measured[name] for name in self.validation_metrics if name in measured]

    @property
    def _lpips(self) -> tuple[str, int]:
        backbone = self.losses.lpips_backbone
        return f"LPIPS with --lpips_backbone={backbone}", LPIPS[backbone]

    def _trained_at(self, narrowest: int | None) -> str:
        name = "train_resolutions" if self.data.train_resolutions else "resolution"
        shape = "" if narrowest is None else " with --aspect_ratio_bucketing"
        return f"--{name}={min(self.data.training_resolutions)}{shape}"

    @property
    def disc_type(self) -> str:
        """What the discriminator looks at: "features" of LPIPS' network, or "patch"es of pixels."""
        with_lpips = self.losses.perceptual_scale > 0
        return self.discriminator.disc_type or ("features" if with_lpips else "patch")

    @property
    def peak_rates(self) -> tuple[float, float]:
        """Learning rates of the VAE and of the discriminator, before --scale_lr."""
        opt = self.optimization
        default = FROM_SCRATCH if self.model.from_scratch and not opt.scale_lr else FINE_TUNING
        rate = default if opt.learning_rate is None else opt.learning_rate
        return rate, rate if opt.disc_learning_rate is None else opt.disc_learning_rate

    @property
    def validation_metrics(self) -> tuple[str, ...]:
        """What validation measures; PSNR costs nothing and is always part of it."""
        asked = self.validation.validation_metrics
        if asked is None:
            asked = ("ssim", "lpips") if self.losses.perceptual_scale > 0 else ("ssim",)
        return "psnr", *(name for name in asked if name != "psnr")

    @property
    def validation_batch_size(self) -> int:
        """Images of a batch in validation and in the measurement of latents."""
        if self.validation.validation_batch_size is not None:
            return self.validation.validation_batch_size
        trained = self.optimization.train_batch_size * max(self.data.training_resolutions) ** 2
        return min(8, max(1, trained // self.data.resolution**2))

    def as_dict(self) -> dict[str, Any]:
        """Every flag and its value, flat, in the order of `--help`; without LAUNCH_ONLY."""
        groups = (vars(getattr(self, group)).items() for group in GROUPS)
        return {name: value for name, value in chain(*groups) if name not in LAUNCH_ONLY}

    def named(self, *flags: str) -> Iterator[tuple[str, Any]]:
        """(flag, value) of those of these flags that have one; of a list, each of its values."""
        values = self.as_dict() | vars(self.checkpoints)
        for flag in flags:
            value = values[flag]
            for part in value if isinstance(value, tuple) else (value,):
                if part:
                    yield flag, part


GROUPS: dict[str, type] = {
    name: group for name, group in get_type_hints(Arguments).items() if group is not Launch
}
FLAGS = {flag.name: flag for group in GROUPS.values() for flag in fields(group)}
