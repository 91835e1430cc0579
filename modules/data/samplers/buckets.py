"""Batches of one shape, so that a picture need not be cut to a square.

Aspect-ratio bucketing as NovelAI described it for Stable Diffusion (2022): a short list of shapes
of about the same area, each picture in the one nearest to its own. Here the shapes follow from the
resolution R alone: shorter sides R, R - s, R - 2s, ..., with s = R / 16 (at least the VAE's
factor f, and a multiple of it); the longer side is the largest multiple of f with which the area
does not exceed R x R; aspect ratios lie between 1:2 and 2:1. At 512 pixels and f = 8 these are
512 x 512, 480 x 544, 448 x 584, 416 x 624, 384 x 680, and the same upright.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modules.seeding import seed_for

MAX_ASPECT = 2
STEPS = 16  # of the shorter side, from the resolution to 0

Shape = tuple[int, int]  # (height, width)


def bucket_shapes(resolution: int, factor: int) -> list[Shape]:
    """The shapes for a resolution that is a multiple of `factor`, from the widest to the tallest.

    Both sides are multiples of `factor`, height x width <= resolution^2, and neither side is more
    than MAX_ASPECT times the other. The square is always among them.
    """
    step = max(factor, resolution // STEPS // factor * factor)
    wide = []
    for height in range(resolution, 0, -step):
        width = resolution**2 // height // factor * factor
        if width > MAX_ASPECT * height:
            break
        wide.append((height, width))
    return wide[::-1] + [(width, height) for height, width in wide[1:]]


def nearest_shape(sizes: Tensor, shapes: Sequence[Shape]) -> Tensor:
    """Which of `shapes` has the aspect ratio nearest to each picture's, by the log of the ratio.

    sizes: [n, 2], heights and widths; zeros for a picture of unknown size, which counts as square.
    shapes: from the widest to the tallest. Returns int64 [n]; halfway, the wider shape.
    """
    table = torch.tensor(shapes, dtype=torch.float64).log()
    tallness = table[:, 0] - table[:, 1]
    logs = sizes.clamp(min=1).double().log()
    return torch.bucketize(logs[:, 0] - logs[:, 1], (tallness[1:] + tallness[:-1]) / 2)


def grouped(indices: Tensor, bucket_of: Tensor, batch_size: int, seed: int, epoch: int) -> Tensor:
    """The batches of an epoch: each of one bucket, in an order drawn from (seed, epoch).

    indices: [n], the epoch's pictures in its order, which is kept within a bucket. bucket_of: the
    bucket of every picture of the source. Returns int64 [batches, batch_size]; the last batch of a
    bucket is filled with the bucket's first pictures of the epoch, which then occur twice.
    """
    buckets = bucket_of[indices]
    batches = []
    for bucket in buckets.unique():
        members = indices[buckets == bucket]
        padded = torch.arange(-(-len(members) // batch_size) * batch_size) % len(members)
        batches.append(members[padded].view(-1, batch_size))
    every = torch.cat(batches)
    generator = torch.Generator().manual_seed(seed_for(seed, "batches", epoch))
    return every[torch.randperm(len(every), generator=generator)]


def num_batches(indices: Tensor, bucket_of: Tensor, batch_size: int) -> int:
    """How many batches `grouped` makes of an epoch."""
    counts = torch.bincount(bucket_of[indices])
    return int((-(-counts // batch_size)).sum())


class Buckets:
    """Which picture of a source is trained on in which shape.

    sizes: [n, 2], heights and widths of the pictures, zeros if unknown. The buckets are the shapes
    of the largest of `resolutions`; at another one, a bucket has that one's shape nearest to it.
    """

    def __init__(self, sizes: Tensor, resolutions: Sequence[int], factor: int) -> None:
        self.shapes = bucket_shapes(max(resolutions), factor)
        self.of = nearest_shape(sizes, self.shapes)
        self._shapes_at = {}
        for resolution in resolutions:
            shapes = bucket_shapes(resolution, factor)
            nearest = nearest_shape(torch.tensor(self.shapes), shapes)
            self._shapes_at[resolution] = [shapes[place] for place in nearest]
        self._members = [(self.of == bucket).nonzero()[:, 0] for bucket in range(len(self.shapes))]

    def shape(self, index: int, resolution: int) -> Shape:
        """(height, width) of the crop of picture `index` in a batch of this resolution."""
        return self._shapes_at[resolution][int(self.of[index])]

    def peers(self, index: int) -> Tensor:
        """The pictures of the same bucket as picture `index`, itself among them."""
        return self._members[int(self.of[index])]

    def occupied(self) -> dict[Shape, int]:
        """The number of pictures of each shape that has any."""
        sizes = zip(self.shapes, map(len, self._members), strict=True)
        return {shape: size for shape, size in sizes if size}
