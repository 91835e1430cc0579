"""What comes of it: the flags of validation, checkpoints, logging and the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from modules.config.limits import FlagGroup, flag, require
from modules.errors import ArgumentError

METRICS = ("psnr", "ssim", "lpips", "rfid")  # of validation


@dataclass(frozen=True)
class ValidationArguments(FlagGroup):
    """Validation"""

    validation_image: tuple[str, ...] | None = flag(None, "image files to validate on", path=True)
    validation_data_dir: str | None = flag(None, "folder of images to validate on", path=True)
    validation_split: str | None = flag(None, "split of --dataset_name to validate on")
    num_validation_images: int | None = flag(
        None,
        "images held back from the training set where no others are given (64), or the most to use "
        "of those given (all); 0 validates nothing",
    )
    validation_steps: int = flag(100, "optimizer steps between validations", minimum=1)
    validation_batch_size: int | None = flag(
        None,
        "images per device and batch in validation; by default as many as have the pixels of a "
        "training micro-batch, up to 8, which then needs more memory than they",
        minimum=1,
        maximum=65536,
    )
    num_grid_images: int = flag(
        8,
        "validation images drawn into each picture of samples/, which keeps about 100 pictures",
        maximum=10**4,
    )
    validation_metrics: tuple[str, ...] | None = flag(
        None,
        "what validation measures beside psnr; by default ssim, and lpips where --perceptual_scale "
        "builds it. rfid compares only at an equal number of images, and means little below "
        "thousands",
        choices=METRICS,
    )
    best_metric: str = flag(
        "psnr", "which of them keeps the best weights in best/", choices=METRICS
    )
    early_stopping: int = flag(
        0,
        "end the run, as at its last step, after so many validations in a row without a better "
        "--best_metric; 0 never does",
    )
    inception_weights: str | None = flag(
        None, "local file with torch-fidelity's weights for rfid, instead of a download", path=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.sources) > 1:
            raise ArgumentError(f"{' and '.join(self.sources)} exclude each other; keep one")
        images = self.validation_image or ()
        for image in images:
            rule = "is given twice and would count twice; give it once"
            require(images.count(image) == 1, "validation_image", image, rule)

    @property
    def sources(self) -> list[str]:
        """The flags that say which images to validate on; none holds training images back."""
        names = ("validation_image", "validation_data_dir", "validation_split")
        return [f"--{name}" for name in names if getattr(self, name)]


@dataclass(frozen=True)
class CheckpointArguments(FlagGroup):
    """Checkpoints"""

    output_dir: str = flag("autoencoderkl-model", "where everything is written", path=True)
    overwrite_output_dir: bool = flag(False, "delete what an earlier run left in --output_dir")
    checkpointing_steps: int = flag(500, "optimizer steps between checkpoints", minimum=1)
    checkpoints_total_limit: int | None = flag(
        None, "keep only this many newest checkpoints", minimum=1
    )
    resume_from_checkpoint: str | None = flag(
        None,
        'a checkpoint folder, or "latest" (a new run if there is none yet); flags with other '
        "values than before count from there on, are warned of, or are refused",
        path=True,
    )
    latent_normalization: str = flag(
        "scale",
        "what the exported config says of the latents: scaling_factor, or shift_factor as well, or "
        "latents_mean and latents_std of each channel",
        choices=("scale", "scale_shift", "per_channel"),
    )
    num_latent_images: int = flag(
        1000, "training images whose latents are measured for that", minimum=1
    )
    export_ldm: bool = flag(
        False, "also write the VAE in latent-diffusion's layout, for ComfyUI and A1111"
    )
    export_fp16: bool = flag(
        False,
        'also write float16 weights beside the float32 ones, for from_pretrained(variant="fp16"); '
        "of the final export, not of best/",
    )


@dataclass(frozen=True)
class LoggingArguments(FlagGroup):
    """Logging and Hub"""

    report_to: str = flag(
        "tensorboard", 'tracker: any that accelerate knows, "all" that are installed, or "none"'
    )
    tracker_project_name: str = flag("train_autoencoderkl", "project name in the tracker")
    logging_dir: str = flag("logs", "TensorBoard's folder inside --output_dir")
    logging_steps: int = flag(10, "optimizer steps between rows of metrics.jsonl", minimum=1)
    push_to_hub: bool = flag(False, "upload the result at the end")
    hub_model_id: str | None = flag(None, "repository to upload to; by default output_dir's name")
    push_every: int | None = flag(
        None,
        "also upload best/, pictures and metrics in the background at every N-th checkpoint; "
        "checkpoints themselves stay here",
        minimum=1,
    )
    hub_private: bool = flag(False, "make the repository a private one")
    hub_license: str | None = flag(
        None, 'licence for the model card, as the Hub spells it: "apache-2.0", "mit", "other"'
    )
    hub_token: str | None = flag(None, "token for the hub; `hf auth login` is safer", secret=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("push_every", "hub_private"):
            rule = "is about uploads: add --push_to_hub, or drop it"
            self.require(self.push_to_hub or not getattr(self, name), name, rule)
        for name in ("logging_dir", "tracker_project_name"):
            path = PurePath(getattr(self, name))
            rule = "must lie inside --output_dir: give a relative path without .."
            require(not path.is_absolute() and ".." not in path.parts, name, path, rule)
        if self.report_to in ("wandb", "all") and self.hub_token is not None:
            raise ArgumentError(
                f"--hub_token cannot be used with --report_to={self.report_to}, which could expose "
                "it; run `hf auth login` instead"
            )
