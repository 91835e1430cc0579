"""The latents of many images, in a file, so that memory does not grow with their number."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from eval.protocol.codecs import VAECodec, quantize
from eval.protocol.latents import measure_latents
from eval.protocol.loading import Batch
from modules.errors import ArgumentError
from modules.models.latents import LatentStatistics


@dataclass(frozen=True)
class Scale:
    """What brings latents [B, C, h, w] to mean 0 and deviation 1 in each channel, and back."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, found: LatentStatistics) -> Scale:
        """That of the posterior's mean; a dead channel stays as small as it is."""
        mean, std = torch.tensor(found.channel_mean), torch.tensor(found.signal_std)
        std = torch.where(std > 1e-6 * found.global_std, std, found.global_std)
        return cls(mean[:, None, None], std[:, None, None])

    def decode(self, codec: VAECodec, latents: Tensor, device: torch.device) -> Tensor:
        """Scaled latents as images [B, K, H, W] uint8. ArgumentError where they are not finite."""
        values = codec.vae.decode((latents * self.std + self.mean).to(device)).sample
        if not torch.isfinite(values).all():
            raise ArgumentError("--model: the decoder gives NaN or infinity for some latents")
        return quantize(values, "nearest")


@dataclass(frozen=True)
class StoredLatents:
    """values: [N, C, h, w] float32, backed by a file. digests: int64 [N], of the images."""

    values: Tensor
    digests: Tensor
    statistics: LatentStatistics

    def scaled(self, scale: Scale) -> StoredLatents:
        """The same ones, with the values in the file scaled."""
        for part in self.values.split(256):
            part.sub_(scale.mean).div_(scale.std)
        return self


def store_latents(
    codec: VAECodec,
    images: Dataset[Tensor],
    file: Path,
    watch: Callable[[Tensor, Tensor], None] = lambda images, latents: None,
    **options: Any,
) -> StoredLatents:
    """Writes the posterior's mean of every readable image to `file`.

    images: uint8 [K, H, W] by position, of one size. watch: sees each batch of images [B, K, H, W]
    uint8 and their latents. options, and errors: as of `measure_latents`.
    """
    digests: list[int] = []
    values = None

    def keep(batch: Batch, pictures: Tensor, latents: Tensor) -> None:
        nonlocal values
        if values is None:
            shape = (len(images), *latents.shape[1:])
            _reserve(file, 4 * math.prod(shape))
            values = torch.from_file(str(file), shared=True, size=math.prod(shape)).view(shape)
        values[len(digests) : len(digests) + batch.count] = latents.cpu()
        digests.extend(batch.digests)
        watch(pictures, latents)

    statistics = measure_latents(codec.vae, images, watch=keep, **options)
    return StoredLatents(values[: len(digests)], torch.tensor(digests), statistics)


def _reserve(file: Path, size: int) -> None:
    """OSError now where the disk is too full; a mapped page without room would kill the process."""
    with open(file, "wb") as opened:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(opened.fileno(), 0, size)
