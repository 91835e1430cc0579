"""A few chosen images through the models again, for pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from eval.metrics.precise import full_precision
from eval.protocol.codecs import Codec
from eval.protocol.protocol import Protocol
from eval.protocol.results import Evaluation


@dataclass(frozen=True)
class Sample:
    """One image, uint8 [3, H, W], and what each model made of it."""

    position: int
    original: Tensor
    reconstructions: dict[str, Tensor]


def worst_positions(evaluation: Evaluation, count: int) -> list[int]:
    """Positions of the lowest PSNRs, worst first; images without a PSNR are not among them."""
    errors = evaluation.per_image["mse"]
    order = np.argsort(-np.where(np.isnan(errors), -1.0, errors), kind="stable")
    return [int(position) for position in order[:count] if errors[position] > 0]


@torch.no_grad()
def reconstruct_selected(
    models: Mapping[str, Codec],
    images: Dataset[Tensor],
    positions: Sequence[int],
    protocol: Protocol,
    device: torch.device,
) -> list[Sample]:
    """Each of the images at `positions` through every model, one by one."""
    samples = []
    with ExitStack() as stack:
        stack.enter_context(full_precision())
        for codec in models.values():
            stack.enter_context(codec.prepared(device))
        for position in positions:
            original = images[position]
            batch = original[None].to(device)
            outputs = {
                label: codec.reconstruct(batch, [position], protocol).images[0].cpu()
                for label, codec in models.items()
            }
            samples.append(Sample(position, original, outputs))
    return samples


def kept_samples(evaluations: Mapping[str, Evaluation]) -> list[Sample]:
    """The first images, which the evaluation kept on its way."""
    first = next(iter(evaluations.values()))
    return [
        Sample(
            position,
            original,
            {label: found.samples[row].reconstruction for label, found in evaluations.items()},
        )
        for row, (position, original, *_) in enumerate(first.samples)
    ]
