"""Every flag, its default and its rules: frozen dataclasses, one for each group of `--help`.

Only the script and the builders see these objects; everything else takes plain values. Each group
checks its own flags, `Arguments` what they mean together.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from modules.config.inputs import DataArguments, ModelArguments
from modules.config.limits import require
from modules.config.objective import DiscriminatorArguments, LossArguments
from modules.config.optimization import OptimizationArguments, PrecisionArguments
from modules.config.outputs import CheckpointArguments, LoggingArguments, ValidationArguments
from modules.config.smallest_sides import LPIPS, SSIM_WINDOW, discriminator_side, require_side
from modules.errors import ArgumentError

# Never written to train_config.yaml: secrets, and what describes this launch rather than the run.
LAUNCH_ONLY = ("hub_token", "resume_from_checkpoint", "overwrite_output_dir", "dry_run")

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
    dry_run: bool = False

    def __post_init__(self) -> None:
        if not self.model.pretrained_model_name_or_path and (
            not self.model.model_config_name_or_path
        ):
            factor = self.model.downsample_factor
            self.data.require_divisible(factor, f"--downsample_factor={factor}")
        self.require_sides()
        if self.discriminator.disc_norm_type == "batch" and self.discriminator.enabled:
            require(
                self.optimization.train_batch_size > 1,
                "disc_norm_type",
                "batch",
                "needs --train_batch_size of at least 2: the statistics of one image erase it; "
                "use --disc_norm_type=spectral_group",
            )
        if self.data.streaming and self.optimization.max_train_steps is None:
            raise ArgumentError(
                "--streaming needs --max_train_steps: a stream does not say how long an epoch is"
            )
        if self.data.train_split != "train" and not self.data.dataset_name:
            raise ArgumentError(
                f"--train_split={self.data.train_split} needs --dataset_name; folders have no "
                "splits"
            )
        if self.validation.validation_split and self.data.dataset_name is None:
            raise ArgumentError(
                f"--validation_split={self.validation.validation_split} needs --dataset_name; for "
                "a folder use --validation_data_dir"
            )
        if self.validation.validation_split == self.data.train_split:
            raise ArgumentError(
                f"--validation_split={self.validation.validation_split} has images of "
                f"--train_split={self.data.train_split}; name another split, or drop the flag to "
                "hold images back"
            )
        if self.validation.validation_split and len(self.data.dataset_name) > 1:
            raise ArgumentError(
                f"--validation_split={self.validation.validation_split} cannot be used with "
                "several --dataset_name; use --validation_data_dir, or hold images back"
            )
        if self.validation.num_validation_images == 0:
            every = self.logging.push_every
            require(every is None, "push_every", every,
                    "uploads the best weights so far, which --num_validation_images=0 never "
                    "finds; let it validate, or drop --push_every")  # fmt: skip
        if self.validation.best_metric == "lpips" and self.losses.perceptual_scale == 0:
            raise ArgumentError(
                "--best_metric=lpips needs LPIPS, which --perceptual_scale=0 never builds; use "
                "--best_metric=psnr"
            )

    def require_sides(self, narrowest: int | None = None) -> None:
        """Training and validation images must be large enough for what looks at them.

        narrowest: shorter side of the narrowest training image, by default the smallest
        resolution. Raises ArgumentError with the numbers.
        """
        disc, losses, training = self.discriminator, self.losses, []
        validation = [("SSIM", SSIM_WINDOW, "validate nothing: --num_validation_images 0")]
        if losses.perceptual_scale > 0:
            name = f"LPIPS with --lpips_backbone={losses.lpips_backbone}"
            lpips = (name, LPIPS[losses.lpips_backbone], "drop LPIPS: --perceptual_scale 0")
            training.append(lpips)
            validation.append(lpips)
        steps = self.optimization.max_train_steps
        if disc.enabled and (steps is None or disc.lengths(steps)["disc_start"] < steps):
            name = f"a discriminator with --disc_num_layers={disc.disc_num_layers}"
            training.append((name, discriminator_side(disc.disc_num_layers), "lower that"))
        smallest = min(self.data.training_resolutions)
        name = "train_resolutions" if self.data.train_resolutions else "resolution"
        shape = "" if narrowest is None else " with --aspect_ratio_bucketing"
        require_side(narrowest or smallest, f"--{name}={smallest}{shape}", training)
        if self.validation.num_validation_images != 0:
            resolution = self.data.resolution
            require_side(resolution, f"--resolution={resolution}", validation)

    @property
    def peak_rates(self) -> tuple[float, float]:
        """Learning rates of the VAE and of the discriminator, before --scale_lr."""
        opt = self.optimization
        default = FROM_SCRATCH if self.model.from_scratch and not opt.scale_lr else FINE_TUNING
        rate = default if opt.learning_rate is None else opt.learning_rate
        return rate, rate if opt.disc_learning_rate is None else opt.disc_learning_rate

    @property
    def validation_batch_size(self) -> int:
        """Images of a batch in validation and in the measurement of latents."""
        if self.validation.validation_batch_size is not None:
            return self.validation.validation_batch_size
        trained = self.optimization.train_batch_size * max(self.data.training_resolutions) ** 2
        return min(8, max(1, trained // self.data.resolution**2))

    def as_dict(self) -> dict[str, Any]:
        """Every flag and its value, flat, in the order of `--help`; without LAUNCH_ONLY."""
        values = {
            f.name: getattr(getattr(self, name), f.name)
            for name, group in GROUPS.items()
            for f in fields(group)
        }
        return {name: value for name, value in values.items() if name not in LAUNCH_ONLY}


GROUPS: dict[str, type] = {
    "model": ModelArguments,
    "data": DataArguments,
    "losses": LossArguments,
    "discriminator": DiscriminatorArguments,
    "optimization": OptimizationArguments,
    "precision": PrecisionArguments,
    "validation": ValidationArguments,
    "checkpoints": CheckpointArguments,
    "logging": LoggingArguments,
}
