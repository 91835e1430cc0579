"""rFID of several models in the same pass over the images, with the originals' part remembered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from eval.codecs import Reconstruction
from eval.digests import image_digest, network_digest
from eval.fid import (
    FeatureStatistics,
    ReferenceCache,
    default_cache_dir,
    extract_features,
    frechet_distance,
)
from eval.loading import Batch
from modules.errors import dispensable
from modules.images import UnreadableImage
from modules.reduce import process_index_and_count, sum_over_processes

PROBED_IMAGES = 4


class StreamedFID:
    """Collects features of originals and reconstructions; `finish` gives each model's rFID.

    The originals are not put through Inception where the cache promises to know them; if the
    promise turns out wrong once all pixels are seen, a second pass makes up for it.
    """

    def __init__(
        self,
        inception: nn.Module,
        labels: Sequence[str],
        images: Dataset[Tensor],
        cache_dir: Path | None,
    ) -> None:
        self.inception = inception
        self.device = next(inception.parameters()).device
        self.originals = FeatureStatistics()
        self.models = {label: FeatureStatistics() for label in labels}
        self.cache = ReferenceCache(
            cache_dir or default_cache_dir(),
            network_digest(inception),
            _probe(images),
            len(images),
        )
        promised = self.cache.read()
        # All processes must agree, also where each has a disk of its own.
        everywhere = sum_over_processes(torch.tensor(int(promised is not None)))
        self.promised = promised if everywhere == process_index_and_count()[1] else None

    def add_originals(self, images: Tensor, count: int) -> None:
        """images: [B, 3, H, W] uint8, of which the first `count` are real."""
        if self.promised is None:
            self.originals.update(extract_features(self.inception, images)[:count])

    def add_reconstructions(self, label: str, output: Reconstruction, count: int) -> None:
        """A batch of a model's output; what is not finite stays out."""
        features = extract_features(self.inception, output.images)[:count].cpu()
        self.models[label].update(features[output.finite[:count]])

    def finish(self, content: str, batches: Iterable[Batch]) -> dict[str, float]:
        """rFID by model; NaN for fewer than two images. `content`: hash of all original pixels."""
        reference = self._reference(content, batches)
        width = len(reference["mu"])
        distances = {}
        for label, statistics in self.models.items():
            result = statistics.result(width)
            finite = np.isfinite(result["sigma"]).all() and np.isfinite(reference["sigma"]).all()
            distances[label] = frechet_distance(reference, result) if finite else float("nan")
        return distances

    def _reference(self, content: str, batches: Iterable[Batch]) -> dict[str, np.ndarray]:
        if self.promised is not None and self.promised[0] == content:
            return self.promised[1]
        if self.promised is not None:
            self.promised = None
            for batch in batches:
                if batch.count:
                    self.add_originals(batch.images.to(self.device), batch.count)
        reference = self.originals.result(self._feature_width())
        if process_index_and_count()[0] == 0 and np.isfinite(reference["sigma"]).all():
            with dispensable(str(self.cache.file)):
                self.cache.write(content, reference)
        return reference

    def _feature_width(self) -> int:
        probe = torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=self.device)
        return extract_features(self.inception, probe).shape[1]


def _probe(images: Dataset[Tensor]) -> list[int]:
    """Hashes of a few images across the data; 0 for one that cannot be read."""
    last = len(images) - 1
    digests = []
    for position in sorted({last * i // (PROBED_IMAGES - 1) for i in range(PROBED_IMAGES)}):
        try:
            digests.append(image_digest(images[position]))
        except UnreadableImage:
            digests.append(0)
    return digests
