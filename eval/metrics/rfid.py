"""rFID of several models in the same pass over the images, with the originals' part remembered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from eval.metrics.digests import combined_digest, network_digest
from eval.metrics.fid import (
    FeatureStatistics,
    ReferenceCache,
    default_cache_dir,
    extract_features,
    frechet_distance,
)
from modules.distributed.reduce import process_index_and_count, sum_over_processes
from modules.errors import dispensable

CHANGED = (
    "the images have changed since the statistics of these names and sizes were stored; those are "
    "deleted now: run it again"
)


class StreamedFID:
    """Collects features of originals and reconstructions; `finish` gives each model's rFID.

    fingerprint: of the images as the protocol sees them. The originals are not put through
    Inception where statistics are stored for it; "" stores none.
    """

    def __init__(
        self, inception: nn.Module, labels: Sequence[str], fingerprint: str, cache_dir: Path | None
    ) -> None:
        self.inception = inception
        self.device = next(inception.parameters()).device
        self.originals = FeatureStatistics()
        self.models = {label: FeatureStatistics() for label in labels}
        key = fingerprint and combined_digest(network_digest(inception), fingerprint)
        self.cache = ReferenceCache(cache_dir or default_cache_dir(), key)
        known = self.cache.read()
        # All processes must agree, also where each has a disk of its own.
        everywhere = sum_over_processes(torch.tensor(int(known is not None)))
        self.known = known if everywhere == process_index_and_count()[1] else None

    def add_originals(self, images: Tensor, count: int) -> None:
        """images: [B, 3, H, W] uint8, of which the first `count` are real."""
        if self.known is None:
            self.originals.update(extract_features(self.inception, images)[:count])

    def add_reconstructions(self, label: str, images: Tensor, finite: Tensor, count: int) -> None:
        """A batch of a model's output; what is not finite stays out.

        images: as of `add_originals`. finite: [B] bool on the CPU.
        """
        features = extract_features(self.inception, images)[:count].cpu()
        self.models[label].update(features[finite[:count]])

    def finish(self, content: str) -> dict[str, float] | None:
        """rFID by model; NaN for fewer than two images. None where what was stored is outdated.

        content: hash of all original pixels, which is stored with the statistics.
        """
        main_process = process_index_and_count()[0] == 0
        if self.known is not None and self.known[0] != content:
            if main_process:
                self.cache.forget()
            return None
        reference = self.known[1] if self.known else self.originals.result(self._feature_width())
        defined = np.isfinite(reference["sigma"]).all()
        if self.known is None and main_process and defined:
            with dispensable(str(self.cache.file)):
                self.cache.write(content, reference)
        distances = {}
        for label, statistics in self.models.items():
            result = statistics.result(len(reference["mu"]))
            finite = defined and np.isfinite(result["sigma"]).all()
            distances[label] = frechet_distance(reference, result) if finite else float("nan")
        return distances

    def _feature_width(self) -> int:
        probe = torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=self.device)
        return extract_features(self.inception, probe).shape[1]
