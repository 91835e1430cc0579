"""Validation while training: the evaluation of `python -m eval`, on the run's own images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from eval.protocol.codecs import VAECodec, open_codec
from eval.protocol.evaluate import evaluate_reconstruction
from eval.protocol.loading import Interrupted
from eval.protocol.protocol import Protocol, ProtocolImages
from eval.protocol.results import Evaluation
from eval.report.grid import comparison_grid
from eval.report.latent_picture import latent_picture
from modules.data.images.images import UnreadableImage
from modules.data.sources.open import ImageSource
from modules.errors import ArgumentError
from modules.models.autoencoder import downsample_factor
from modules.models.latents import LatentStatistics
from modules.training.run import Run

JPEG = "jpeg:10"  # about as far from the original as a good f8c4


def metrics(lpips: Iterable[str]) -> list[str]:
    """What a validation measures, with LPIPS over these backbones."""
    return ["psnr", "ssim", "rec", "kl", *(f"lpips_{name}" for name in lpips)]


@dataclass(frozen=True)
class ValidationResult:
    """Numbers by name, what they come from, and a picture to look at (if wanted).

    grid_latents: [n, C, h, w], posterior means of the pictures in the grid; None without a grid.
    """

    metrics: dict[str, float]
    evaluation: Evaluation
    grid: Image.Image | None
    grid_latents: Tensor | None

    @cached_property
    def latent_grid(self) -> Image.Image | None:
        """The grid's latents as a picture."""
        return None if self.grid_latents is None else latent_picture(self.grid_latents)

    @property
    def latents(self) -> LatentStatistics | None:
        """Statistics of the latents; None when no reconstruction was finite."""
        return self.evaluation.latents


class Validation:
    """A fixed set of images under the evaluation protocol; the same numbers as `python -m eval`.

    Raises ArgumentError when none of them can be read.
    """

    def __init__(
        self,
        source: ImageSource,
        resolution: int,
        *,
        num_images: int | None,
        lpips: nn.Module | None,
        lpips_backbone: str,
        batch_size: int,
        num_grid_images: int,
        device: torch.device,
    ) -> None:
        self.protocol = Protocol(resolution=resolution)
        self.images = ProtocolImages(source, self.protocol, num_images)
        if not any(self._is_readable(position) for position in range(len(self.images))):
            raise ArgumentError(
                f"none of the {len(self.images)} validation images of {source.name} can be read; "
                "check --validation_image, --validation_data_dir or --validation_split"
            )
        self.lpips = {} if lpips is None else {lpips_backbone: lpips}
        self.batch_size = batch_size
        self.num_grid_images = num_grid_images
        self.device = device
        self.baselines: dict[str, Evaluation] = {}  # what needs no training, measured once
        self.latest: ValidationResult | None = None

    def __len__(self) -> int:
        return len(self.images)

    def _is_readable(self, position: int) -> bool:
        try:
            self.images[position]
        except UnreadableImage:
            return False
        return True

    def improves(self, metrics: dict[str, float], best: dict[str, float], name: str) -> bool:
        """Whether `metrics` are finite and better than `best` in "psnr", "ssim" or "lpips"."""
        key = f"lpips_{next(iter(self.lpips))}" if name == "lpips" else name
        sign = -1.0 if name == "lpips" else 1.0
        if metrics["nan_images"] or not math.isfinite(metrics[key]):
            return False
        return key not in best or sign * metrics[key] > sign * best[key]

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
                metrics(self.lpips),
                protocol=self.protocol,
                batch_size=self.batch_size,
                device=self.device,
                lpips=self.lpips,
                latents=True,
                num_samples=self.num_grid_images,
                progress=False,
                stop=stop,
            )["vae"]
        except Interrupted:
            return None
        kept = evaluation.samples
        spread = {"latent_std": evaluation.latents.global_std} if evaluation.latents else {}
        self.latest = ValidationResult(
            metrics=evaluation.summary() | spread,
            evaluation=evaluation,
            grid=comparison_grid({"reconstruction": evaluation}) if kept else None,
            grid_latents=torch.stack([sample.latent for sample in kept]) if kept else None,
        )
        return self.latest

    def measure_baselines(self, factor: int, stop: Callable[[], bool] = lambda: False) -> None:
        """Bicubic down and up by the VAE's factor, and JPEG: what any training has to beat. Once.

        Collective. Raises Interrupted where `stop` says so.
        """
        self.baselines = self.baselines or evaluate_reconstruction(
            {name: open_codec(name) for name in (f"downsample:{factor}", JPEG)},
            self.images,
            ["psnr", "ssim"],
            protocol=self.protocol,
            batch_size=self.batch_size,
            device=self.device,
            progress=False,
            stop=stop,
        )


def make_validation(run: Run, images: ImageSource | None) -> Validation | None:
    """The validation that the flags ask for, or None without validation images."""
    args = run.args.validation
    if images is None:
        return None
    return Validation(
        images,
        run.args.data.resolution,
        num_images=args.num_validation_images,
        lpips=run.perceptual,
        lpips_backbone=run.args.losses.lpips_backbone,
        batch_size=run.args.validation_batch_size,
        num_grid_images=args.num_grid_images,
        device=run.accelerator.device,
    )
