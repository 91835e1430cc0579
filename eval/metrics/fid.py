"""Fréchet Inception distance between images and reconstructions, streamed (Heusel et al. 2017).

Features and the distance are torch-fidelity's (`inception-v3-compat`, 2048 values an image); sums
are float64, so nothing is kept per image and every process adds its share. All models share one
pass over the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

from modules.distributed.reduce import sum_over_processes
from modules.errors import LIBRARY_ERRORS
from modules.image_modes import rgb_views

EXTRACTOR = "inception-v3-compat"
FEATURES = "2048"

Reference = dict[str, dict[str, np.ndarray]]


class InceptionUnavailable(RuntimeError):
    """The network's weights could not be downloaded; the message says what to do."""


def build_inception(weights: str | None = None) -> nn.Module:
    """torch-fidelity's Inception v3: uint8 [B, 3, H, W] to a tuple with features [B, 2048] float32.

    `weights`: a local copy of torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`; without
    it torch.hub downloads it once. Raises ValueError for a file that is not it or holds more than
    tensors, InceptionUnavailable when the download fails.
    """
    if weights is not None and not Path(weights).is_file():
        raise ValueError(f"--inception_weights={weights} does not exist")
    try:
        if weights is not None:
            # torch-fidelity reads a pickle that may run code: let only plain tensors pass.
            torch.load(weights, map_location="cpu", weights_only=True)
        return FeatureExtractorInceptionV3(
            EXTRACTOR, [FEATURES], feature_extractor_weights_path=weights, verbose=False
        )
    except LIBRARY_ERRORS as error:
        if weights is None:
            raise InceptionUnavailable(
                f"Inception weights could not be downloaded ({error}); give them with "
                "--inception_weights FILE"
            ) from error
        raise ValueError(
            f"--inception_weights={weights} is not torch-fidelity's Inception state dict "
            f"({type(error).__name__})"
        ) from error


class FeatureStatistics:
    """Mean and covariance of features of one width, streamed: float64 sums on the CPU."""

    def __init__(self, width: int) -> None:
        self.count = torch.zeros((), dtype=torch.float64)
        self.total = torch.zeros(width, dtype=torch.float64)
        self.products = torch.zeros(width, width, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Adds features [B, width] of any float type."""
        features = features.detach().cpu().double()
        self.count += len(features)
        self.total += features.sum(dim=0)
        self.products.addmm_(features.T, features)

    def result(self) -> dict[str, np.ndarray]:
        """ "mu" [D] and "sigma" [D, D] (unbiased) over all processes, which must all call this.

        Not finite for fewer than two images.
        """
        count, total, products = map(sum_over_processes, (self.count, self.total, self.products))
        mean = total / count
        covariance = (products - count * torch.outer(mean, mean)) / (count - 1)
        return {"mu": mean.numpy(), "sigma": covariance.numpy()}


class StreamedFID:
    """Collects features of originals and reconstructions; `finish` gives each model's rFID.

    reference: statistics of originals by the hash of all their pixels. Where there are any, a pass
    computes none; where there are none, it adds its own.
    """

    def __init__(
        self, inception: nn.Module, labels: Sequence[str], reference: Reference | None = None
    ) -> None:
        self.inception, self.reference = inception, {} if reference is None else reference
        device = next(inception.parameters()).device
        probe = torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=device)
        width = extract_features(inception, probe).shape[1]
        self.originals = FeatureStatistics(width)
        self.models = {label: FeatureStatistics(width) for label in labels}

    def add_originals(self, images: Tensor, count: int) -> None:
        """images: [B, K, H, W] uint8, of which the first `count` are real; all their RGB views."""
        if not self.reference:
            for view in rgb_views(images):
                self.originals.update(extract_features(self.inception, view)[:count])

    def add_reconstructions(self, label: str, images: Tensor, finite: Tensor, count: int) -> None:
        """A batch of a model's output; what is not finite stays out.

        images: as of `add_originals`. finite: [B] bool on the CPU.
        """
        for view in rgb_views(images):
            features = extract_features(self.inception, view)[:count].cpu()
            self.models[label].update(features[finite[:count]])

    def finish(self, content: str) -> dict[str, float]:
        """rFID by model; NaN for fewer than two images, and for others than the reference's.

        content: the hash of this pass's originals. Where an image that was there for the reference
        is not any more, the next pass makes a new one.
        """
        if not self.reference:
            self.reference[content] = self.originals.result()
        elif content not in self.reference:
            self.reference.clear()
            return dict.fromkeys(self.models, float("nan"))
        originals = self.reference[content]
        return {
            label: frechet_distance(originals, statistics.result())
            for label, statistics in self.models.items()
        }


def frechet_distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Squared Fréchet distance between the Gaussians of two feature statistics; NaN without any."""
    if not (np.isfinite(a["sigma"]).all() and np.isfinite(b["sigma"]).all()):
        return float("nan")
    return float(fid_statistics_to_metric(a, b, verbose=False)[KEY_METRIC_FID])


@torch.no_grad()
def extract_features(inception: nn.Module, images: Tensor) -> Tensor:
    """Features [B, D] of images [B, 3, H, W] uint8, in float32 whatever autocast says."""
    with torch.autocast(images.device.type, enabled=False):
        return inception(images)[0].flatten(1).float()
