"""Several models on the same images: what was measured, and how they compare."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.protocol.codecs import Codec, all_prepared
from eval.protocol.intervals import Difference, Interval, intervals, paired_differences
from eval.protocol.protocol import ProtocolImages
from eval.protocol.results import Evaluation
from modules.distributed.device import device_name
from modules.distributed.reduce import process_index_and_count


@dataclass(frozen=True)
class Sample:
    """One image, uint8 [K, H, W], and what each model made of it."""

    position: int
    original: Tensor
    reconstructions: dict[str, Tensor]


@dataclass
class Comparison:
    """Everything that is printed and written of models on the same images; mappings by label."""

    models: dict[str, Codec]
    names: dict[str, str]  # what --model said
    evaluations: dict[str, Evaluation]
    images: ProtocolImages
    device: torch.device
    num_worst: int  # images of each model
    run: dict[str, Any]  # as of `run_data`

    @cached_property
    def intervals(self) -> dict[str, dict[str, Interval]]:
        """Those of every metric of each model."""
        seed = self.images.protocol.seed
        return {label: intervals(found, seed) for label, found in self.evaluations.items()}

    @cached_property
    def differences(self) -> list[Difference]:
        """Between every two models, but for the identity, which is perfect."""
        competing = {
            label: found
            for label, found in self.evaluations.items()
            if self.names[label] != "identity"
        }
        return paired_differences(competing, self.images.protocol.seed)

    @property
    def samples(self) -> list[Sample]:
        """The first images."""
        first = next(iter(self.evaluations.values()))
        return self._reconstructed([kept.position for kept in first.samples])

    @property
    def worst(self) -> list[Sample]:
        """The images at which any model is worst, those with the largest error first."""
        found = self.evaluations.values()
        chosen = {p for evaluation in found for p in worst_positions(evaluation, self.num_worst)}
        errors = np.stack([evaluation.per_image["mse"] for evaluation in found])
        return self._reconstructed(sorted(chosen, key=lambda p: -np.nanmax(errors[:, p])))

    @torch.no_grad()
    def _reconstructed(self, positions: Sequence[int]) -> list[Sample]:
        """Each of the images through every model, one by one."""
        samples, protocol = [], self.images.protocol
        with all_prepared(self.models.values(), self.device):
            for position in positions:
                original = self.images[position]
                batch = original[None].to(self.device)
                outputs = {
                    label: codec.reconstruct(batch, [position], protocol).images[0].cpu()
                    for label, codec in self.models.items()
                }
                samples.append(Sample(position, original, outputs))
        return samples

    @property
    def stamp(self) -> list[str]:
        """The lines that stand under every table: protocol and data."""
        first = next(iter(self.evaluations.values()))
        return [
            f"Protocol: {self.images.protocol.describe()}",
            f"Data: {self.images.describe()}, content {first.content[:12]}",
        ]

    @property
    def run_line(self) -> str:
        """What the work took, and where."""
        return (
            "Run: {seconds:.1f} s, {images_per_second:.2f} images/s, peak memory "
            "{peak_memory_mib:.0f} MiB, {device}, {processes} process(es), batch size {batch_size}"
        ).format_map(self.run)


def worst_positions(evaluation: Evaluation, count: int) -> list[int]:
    """Positions of the lowest PSNRs, worst first; images without a PSNR are not among them."""
    errors = np.nan_to_num(evaluation.per_image["mse"])
    order = np.argsort(-errors, kind="stable")
    return [int(position) for position in order[:count] if errors[position] > 0]


def run_data(
    device: torch.device, seconds: float, num_images: int, batch_size: int
) -> dict[str, Any]:
    """What a pass over the images took. Memory: of a GPU's allocator, else of the process."""
    on_gpu = device.type == "cuda"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
    return {
        "seconds": seconds,
        "images_per_second": num_images / seconds,
        "peak_memory_mib": (torch.cuda.max_memory_allocated(device) if on_gpu else peak) / 2**20,
        "processes": process_index_and_count()[1],
        "device": device_name(device),
        "batch_size": batch_size,
    }
