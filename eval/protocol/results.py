"""What an evaluation found, image by image, and its summary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from eval.metrics.image import PSNR_CAP, psnr
from modules.models.latents import LatentStatistics


class Kept(NamedTuple):
    """One image that was kept for a picture, and what the model made of it.

    original, reconstruction: [K, H, W] uint8. latent: [C, h, w], the posterior's mean.
    """

    position: int
    original: Tensor
    reconstruction: Tensor
    latent: Tensor | None


@dataclass
class Evaluation:
    """What one model did to the images. Arrays are float64 [N] in image order, equal on all ranks.

    `per_image` has NaN where there is no number: unreadable images and those whose reconstruction
    is not finite. Its "psnr" is capped at PSNR_CAP; "mse" is exact, in squared levels.
    """

    per_image: dict[str, np.ndarray]
    unreadable: dict[int, str]  # position: reason
    nan_images: list[int]
    rfid: float | None = None
    grids: dict[str, float] = field(default_factory=dict)  # of flat colours, by column
    latents: LatentStatistics | None = None
    missing: dict[str, str] = field(default_factory=dict)  # metric: reason
    samples: list[Kept] = field(default_factory=list)
    content: str = ""  # hash of all original pixels
    seconds: float = 0.0  # spent in the model by this process

    @property
    def num_images(self) -> int:
        """Images that the means are over: readable, with a finite reconstruction."""
        total = len(self.per_image["mse"])
        return total - len(self.unreadable) - len(self.nan_images)

    def summary(self) -> dict[str, float]:
        """Flat numbers: means over images, pooled PSNR, rFID, grids, and the number of images.

        A metric that is missing has no key; one without any valid image is NaN.
        """
        means = {key: _mean(values) for key, values in self.per_image.items()}
        pooled = psnr(torch.tensor(means.pop("mse"), dtype=torch.float64)).clamp(max=PSNR_CAP)
        if "psnr" in means:
            means["psnr_pooled"] = pooled.item()
        if self.rfid is not None:
            means["rfid"] = self.rfid
        counts = {"num_images": self.num_images, "nan_images": len(self.nan_images)}
        return {**means, **self.grids, **counts}


def _mean(values: np.ndarray) -> float:
    """Mean of what is not NaN; NaN where nothing is."""
    valid = values[~np.isnan(values)]
    return float(valid.mean()) if len(valid) else float("nan")
