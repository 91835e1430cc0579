"""Validation while training: the evaluation of `python -m eval`, on the run's own images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import nn

from eval.codecs import VAECodec
from eval.evaluate import evaluate_reconstruction
from eval.grid import comparison_grid
from eval.protocol import Protocol, ProtocolImages
from eval.results import Evaluation
from modules.errors import ArgumentError
from modules.images import UnreadableImage
from modules.latents import LatentStatistics
from modules.sources import ImageSource


@dataclass(frozen=True)
class ValidationResult:
    """Numbers by name, what they come from, and a picture to look at (if wanted)."""

    metrics: dict[str, float]
    evaluation: Evaluation
    grid: Image.Image | None

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
        if metrics["nan_images"] or math.isnan(metrics[key]):
            return False
        return key not in best or sign * metrics[key] > sign * best[key]

    def run(self, vae: AutoencoderKL) -> ValidationResult:
        """Evaluates `vae` in float32. Collective: every process takes its share of the images."""
        evaluation = evaluate_reconstruction(
            {"vae": VAECodec(vae)},
            self.images,
            ["psnr", "ssim", "rec", "kl", *(f"lpips_{name}" for name in self.lpips)],
            protocol=self.protocol,
            batch_size=self.batch_size,
            device=self.device,
            lpips=self.lpips,
            latents=True,
            num_samples=self.num_grid_images,
            progress=False,
        )["vae"]
        spread = {"latent_std": evaluation.latents.global_std} if evaluation.latents else {}
        return ValidationResult(
            metrics=evaluation.summary() | spread,
            evaluation=evaluation,
            grid=comparison_grid({"reconstruction": evaluation}) if evaluation.samples else None,
        )
