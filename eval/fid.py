"""Fréchet Inception distance between images and reconstructions, streamed (Heusel et al. 2017).

Features and the distance are torch-fidelity's (`inception-v3-compat`, 2048 values an image); sums
are float64, so nothing is kept per image and every process adds its share.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

from modules.reduce import sum_over_processes

EXTRACTOR = "inception-v3-compat"
FEATURES = "2048"
CACHE_VARIABLE = "VAE_EVAL_CACHE"


class InceptionUnavailable(RuntimeError):
    """The network's weights could not be downloaded; the message says what to do."""


def build_inception(weights: str | None = None) -> nn.Module:
    """torch-fidelity's Inception v3: uint8 [B, 3, H, W] to a tuple with features [B, 2048] float32.

    `weights`: a local copy of torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`; without
    it torch.hub downloads it once. Raises ValueError for a file that is not it or holds more than
    tensors, InceptionUnavailable when the download fails.
    """
    if weights is None:
        try:
            return FeatureExtractorInceptionV3(EXTRACTOR, [FEATURES], verbose=False)
        except (URLError, OSError) as error:
            raise InceptionUnavailable(
                f"Inception weights could not be downloaded ({error}); give them with "
                "--inception_weights FILE"
            ) from error
    if not Path(weights).is_file():
        raise ValueError(f"--inception_weights={weights} does not exist")
    try:
        # torch-fidelity reads the file as a pickle that may run code: let only plain tensors pass.
        torch.load(weights, map_location="cpu", weights_only=True)
        return FeatureExtractorInceptionV3(
            EXTRACTOR, [FEATURES], feature_extractor_weights_path=weights
        )
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, TypeError) as error:
        raise ValueError(
            f"--inception_weights={weights} is not torch-fidelity's Inception state dict "
            f"({type(error).__name__})"
        ) from error


class FeatureStatistics:
    """Mean and covariance of features, streamed: sums in float64 on the CPU."""

    def __init__(self) -> None:
        self.count = torch.zeros((), dtype=torch.float64)
        self.total = torch.zeros(0, dtype=torch.float64)
        self.products = torch.zeros(0, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Adds features [B, D] of any float type."""
        features = features.detach().cpu().double()
        if not self.total.numel():
            width = features.shape[1]
            self.total = self.total.new_zeros(width)
            self.products = self.products.new_zeros(width, width)
        self.count += len(features)
        self.total += features.sum(dim=0)
        self.products.addmm_(features.T, features)

    def result(self, width: int) -> dict[str, np.ndarray]:
        """ "mu" [D] and "sigma" [D, D] (unbiased) over all processes, which must all call this.

        `width` is D, for a process that had no image.
        """
        if not self.total.numel():
            self.total = self.total.new_zeros(width)
            self.products = self.products.new_zeros(width, width)
        count = sum_over_processes(self.count)
        total, products = sum_over_processes(self.total), sum_over_processes(self.products)
        mean = total / count
        covariance = (products - count * torch.outer(mean, mean)) / (count - 1)
        return {"mu": mean.numpy(), "sigma": covariance.numpy()}


def frechet_distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Squared Fréchet distance between the Gaussians of two feature statistics."""
    return float(fid_statistics_to_metric(a, b, verbose=False)[KEY_METRIC_FID])


@torch.no_grad()
def extract_features(inception: nn.Module, images: Tensor) -> Tensor:
    """Features [B, D] of images [B, 3, H, W] uint8, in float32 whatever autocast says."""
    with torch.autocast(images.device.type, enabled=False):
        return inception(images)[0].flatten(1).float()


def default_cache_dir() -> Path:
    """$VAE_EVAL_CACHE, else vae-eval under $XDG_CACHE_HOME or ~/.cache."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "vae-eval"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise ValueError(
            f"this user has no home folder to keep statistics in: set {CACHE_VARIABLE}"
        ) from None


class ReferenceCache:
    """Statistics of the originals on disk, by a `key` for network and images; "" keeps nothing.

    The key knows images by name and size. So the hash of all pixels is stored as well, for the
    reader to compare with what it has seen in the end.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.file = folder / f"reference-{key}.npz" if key else None

    def read(self) -> tuple[str, dict[str, np.ndarray]] | None:
        """(content, statistics), or None where there is no whole file."""
        if self.file is None or not self.file.is_file():
            return None
        try:
            with np.load(self.file, allow_pickle=False) as stored:
                statistics = {"mu": stored["mu"], "sigma": stored["sigma"]}
                return str(stored["content"]), statistics
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None  # damaged or foreign: computed again and replaced

    def write(self, content: str, statistics: dict[str, np.ndarray]) -> None:
        """Stores the statistics with their content; the file appears complete or not at all."""
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.file.parent, suffix=".tmp")
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, content=np.array(content), **statistics)
        os.replace(temporary, self.file)

    def forget(self) -> None:
        """Deletes what is outdated."""
        self.file.unlink(missing_ok=True)
