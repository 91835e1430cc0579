"""Half way between an image's latents and a neighbour's: what iFID decodes (arXiv 2603.05630).

Over 14 autoencoders the FID of these pictures ranked them much as that of trained diffusion models
did (rank correlation about .85 as published): where the way between two latents leads through
nothing that the decoder knows, a diffusion model will not find it either. Here the latents are
scaled to unit deviation in each channel first, as a diffusion model would see them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from eval.diffusability.latents_on_disk import StoredLatents

NEIGHBOURS = 10
QUERIES, CHUNK = 64, 4096  # latents compared at a time


def interpolated(data: StoredLatents, reference: StoredLatents, seed: int) -> Iterator[Tensor]:
    """Batches [B, C, h, w]: each latent of `data` half way to a neighbour in `reference`.

    Among its NEIGHBOURS nearest by cosine one is drawn with probability softmax(-mean squared
    distance). An image is no neighbour of its equal.
    """
    generator = torch.Generator().manual_seed(seed)
    for latents, digests in zip(
        data.values.split(QUERIES), data.digests.split(QUERIES), strict=True
    ):
        found, similarity = nearest(latents, digests, reference)
        neighbours = reference.values[found]
        distance = (latents[:, None] - neighbours).square().mean(dim=(2, 3, 4))
        distance[similarity == -torch.inf] = torch.inf
        drawn = torch.multinomial((-distance).softmax(dim=1), 1, generator=generator)[:, 0]
        yield half_way(latents, neighbours[torch.arange(len(latents)), drawn])


def nearest(
    latents: Tensor, digests: Tensor, reference: StoredLatents, count: int = NEIGHBOURS
) -> tuple[Tensor, Tensor]:
    """Positions in `reference` of those nearest to [B, C, h, w], and cosines: both [B, count].

    A cosine is -inf where fewer than `count` other images are left.
    """
    best = torch.full((len(latents), count), -torch.inf)
    positions = torch.zeros(len(latents), count, dtype=torch.int64)
    for start, (values, others) in enumerate(
        zip(reference.values.split(CHUNK), reference.digests.split(CHUNK), strict=True)
    ):
        cosine = _unit(latents) @ _unit(values).T
        cosine[digests[:, None] == others[None]] = -torch.inf
        best, order = torch.cat([best, cosine], dim=1).topk(count)
        here = (torch.arange(len(values)) + start * CHUNK).expand(len(latents), -1)
        positions = torch.cat([positions, here], dim=1).gather(1, order)
    return positions, best


def half_way(a: Tensor, b: Tensor) -> Tensor:
    """The spherical interpolation of a and b [B, ...] at 1/2 (Shoemake 1985): the mean's direction.

    sin(x / 2) / sin(x) = 1 / (2 cos(x / 2)) for an angle x between them, here below 180 degrees.
    """
    cosine = (_unit(a) * _unit(b)).sum(dim=1).clamp(min=-1 + 1e-6, max=1)
    return (a + b) / (2 + 2 * cosine).sqrt().view(-1, *[1] * (a.dim() - 1))


def _unit(latents: Tensor) -> Tensor:
    return torch.nn.functional.normalize(latents.flatten(1), dim=1)
