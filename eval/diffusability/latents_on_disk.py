"""The latents of many images, in a file, so that memory does not grow with their number."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from eval.protocol.codecs import VAECodec, quantize
from eval.protocol.loading import own_batches
from modules.errors import ArgumentError
from modules.models.latents import LatentAccumulator, LatentStatistics


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
    device: torch.device,
    batch_size: int,
    num_workers: int = 0,
    progress: bool = False,
    watch: Callable[[Tensor, Tensor], None] = lambda images, latents: None,
) -> StoredLatents:
    """Writes the posterior's mean of every readable image to `file`.

    images: uint8 [K, H, W] by position, of one size. watch: sees each batch of images [B, K, H, W]
    uint8 and their latents. Raises ArgumentError where the encoder gives NaN or no image is read.
    """
    accumulator, digests, values = LatentAccumulator(codec.latent_channels), [], None
    for batch in own_batches(images, batch_size, num_workers, progress):
        if not batch.count:
            continue
        pictures = batch.images[: batch.count].to(device)
        posterior = codec.encode(pictures)
        if values is None:
            shape = (len(images), *posterior.mean.shape[1:])
            _reserve(file, 4 * math.prod(shape))
            values = torch.from_file(str(file), shared=True, size=math.prod(shape)).view(shape)
        values[len(digests) : len(digests) + batch.count] = posterior.mean.cpu()
        digests += batch.digests
        accumulator.update(posterior.mean, posterior.logvar)
        watch(pictures, posterior.mean)
    statistics = accumulator.result()
    if not math.isfinite(statistics.global_std):
        raise ArgumentError("--model: the encoder gives NaN or infinity for some images")
    return StoredLatents(values[: len(digests)], torch.tensor(digests), statistics)


def _reserve(file: Path, size: int) -> None:
    """OSError now where the disk is too full; a mapped page without room would kill the process."""
    with open(file, "wb") as opened:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(opened.fileno(), 0, size)
