"""Validation while training: the evaluation of `python -m eval`, on the run's own images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from eval.metrics.columns import COLUMN
from eval.metrics.fid import InceptionUnavailable, Reference, build_inception
from eval.metrics.networks import Networks
from eval.protocol.codecs import VAECodec, open_codec
from eval.protocol.evaluate import evaluate_reconstruction
from eval.protocol.loading import Interrupted
from eval.protocol.protocol import Protocol, ProtocolImages
from eval.protocol.results import Evaluation
from eval.report.grid import comparison_grid
from eval.report.latent_picture import latent_picture
from modules.builders.networks import open_lpips
from modules.config.arguments import Arguments
from modules.data.images.images import UnreadableImage
from modules.data.sources.parts import ImageSource
from modules.distributed.reduce import gather_from_processes
from modules.errors import ArgumentError
from modules.models.autoencoder import downsample_factor
from modules.models.latents import LatentStatistics
from modules.training.run import Run

JPEG = "jpeg:10"  # about as far from the original as a good f8c4


def measured(args: Arguments) -> list[str]:
    """What a validation measures, by the names of `eval.metrics.columns.METRICS`."""
    lpips = f"lpips_{args.losses.lpips_backbone}"
    chosen = [lpips if name == "lpips" else name for name in args.validation_metrics]
    return [*chosen, "rec", "kl"]


def open_judges(
    args: Arguments, perceptual: nn.Module | None, device: torch.device | str
) -> Networks:
    """The networks behind --validation_metrics; LPIPS is training's or the discriminator's.

    Raises ArgumentError, naming the flag, for weights that are missing or do not fit.
    """
    judges, chosen = Networks(), args.validation_metrics
    if "lpips" in chosen:
        backbone = args.losses.lpips_backbone
        judges.lpips[backbone] = perceptual or open_lpips(args).to(device)
    if "rfid" in chosen:
        try:
            judges.inception = build_inception(args.validation.inception_weights).to(device)
        except (InceptionUnavailable, ValueError) as error:
            raise ArgumentError(f"{error}; or leave rfid out of --validation_metrics") from error
    return judges


@dataclass(frozen=True)
class ValidationResult:
    """Numbers by name, what they come from, and a picture to look at (if wanted)."""

    metrics: dict[str, float]
    evaluation: Evaluation
    grid: Image.Image | None

    @property
    def grid_latents(self) -> Tensor | None:
        """[n, C, h, w], posterior means of the pictures in the grid; None without a grid."""
        kept = self.evaluation.samples
        return torch.stack([sample.latent for sample in kept]) if kept else None

    @cached_property
    def latent_grid(self) -> Image.Image | None:
        """The grid's latents as a picture."""
        return None if self.grid is None else latent_picture(self.grid_latents)

    @property
    def latents(self) -> LatentStatistics | None:
        """Statistics of the latents; None when no reconstruction was finite."""
        return self.evaluation.latents


@dataclass
class Validation:
    """A fixed set of images under the evaluation protocol; the same numbers as `python -m eval`."""

    images: ProtocolImages
    metrics: Sequence[str]  # names of METRICS
    best_metric: str
    judges: Networks
    batch_size: int
    num_grid_images: int
    device: torch.device
    reference: Reference = field(default_factory=dict)  # a resumed run gathers it anew
    baselines: dict[str, Evaluation] = field(default_factory=dict)  # of what needs no training
    latest: ValidationResult | None = None

    @property
    def protocol(self) -> Protocol:
        """How the images are cut and reconstructions are rounded."""
        return self.images.protocol

    def __len__(self) -> int:
        return len(self.images)

    def improves(self, metrics: dict[str, float], best: dict[str, float]) -> bool:
        """Whether `metrics` are finite and better than `best` in the metric that decides."""
        value = metrics.get(self.best_metric, math.nan)
        if metrics["nan_images"] or not math.isfinite(value):
            return False
        distance = COLUMN[self.best_metric].distance
        return self.best_metric not in best or distance(value) < distance(best[self.best_metric])

    def run(
        self, vae: AutoencoderKL, stop: Callable[[], bool] = lambda: False
    ) -> ValidationResult | None:
        """Evaluates `vae` in float32. Collective: every process takes its share of the images.

        stop: asked between batches, collective as well; None is returned where it says so.
        """
        try:
            self.measure_baselines(downsample_factor(vae), stop)
            evaluation = evaluate_reconstruction(
                {"vae": VAECodec(vae)},
                self.images,
                self.metrics,
                protocol=self.protocol,
                batch_size=self.batch_size,
                device=self.device,
                networks=self.judges,
                reference=self.reference,
                latents=True,
                num_samples=self.num_grid_images,
                progress=False,
                stop=stop,
            )["vae"]
        except Interrupted:
            return None
        numbers = evaluation.summary()
        if latents := evaluation.latents:
            numbers |= {"latent_std": latents.global_std, "posterior_std": latents.posterior_std}
        # The main process's in all of them: they decide by it, to the last digit.
        metrics = gather_from_processes([numbers])[0]
        grid = comparison_grid({"reconstruction": evaluation}) if evaluation.samples else None
        self.latest = ValidationResult(metrics, evaluation, grid)
        return self.latest

    def measure_baselines(self, factor: int, stop: Callable[[], bool] = lambda: False) -> None:
        """Bicubic down and up by the VAE's factor, and JPEG: what any training has to beat. Once.

        Collective. Raises Interrupted where `stop` says so.
        """
        self.baselines = self.baselines or evaluate_reconstruction(
            {name: open_codec(name) for name in (f"downsample:{factor}", JPEG)},
            self.images,
            [name for name in ("psnr", "ssim") if name in self.metrics],
            protocol=self.protocol,
            batch_size=self.batch_size,
            device=self.device,
            progress=False,
            stop=stop,
        )


def make_validation(run: Run, images: ImageSource | None) -> Validation | None:
    """The validation that the flags ask for, or None without validation images.

    Raises ArgumentError where none of them can be read, or too few are given.
    """
    if images is None:
        return None
    args, metrics = run.args, measured(run.args)
    protocol = Protocol.of(run.raw_vae.vae, args.data.resolution)
    chosen = ProtocolImages(images, protocol, args.validation.num_validation_images)
    if not any(_is_readable(chosen, position) for position in range(len(chosen))):
        raise ArgumentError(
            f"none of the {len(chosen)} validation images of {images.name} can be read; "
            "check --validation_image, --validation_data_dir or --validation_split"
        )
    if "rfid" in metrics and len(chosen) < 2:
        raise ArgumentError(
            "--validation_metrics=rfid compares distributions and needs at least 2 validation "
            "images, there is 1; give thousands, or leave rfid out"
        )
    return Validation(
        chosen,
        metrics,
        best_metric=metrics[args.validation_metrics.index(args.validation.best_metric)],
        judges=open_judges(args, run.eyes, run.accelerator.device),
        batch_size=args.validation_batch_size,
        num_grid_images=args.validation.num_grid_images,
        device=run.accelerator.device,
    )


def _is_readable(images: ProtocolImages, position: int) -> bool:
    try:
        images[position]
    except UnreadableImage:
        return False
    return True
