"""Latent statistics of a model over a set of images, by encoding alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.data import Dataset

from eval.metrics.precise import full_precision
from eval.protocol.choices import DEFAULT_BATCH_SIZE
from eval.protocol.codecs import VAECodec
from eval.protocol.loading import Batch, Interrupted, own_batches
from modules.errors import ArgumentError
from modules.models.latents import LatentAccumulator, LatentStatistics


@torch.no_grad()
def measure_latents(
    vae: AutoencoderKL,
    images: Dataset[Tensor],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    progress: bool = True,
    stop: Callable[[], bool] = lambda: False,
    watch: Callable[[Batch, Tensor, Tensor], None] = lambda batch, images, latents: None,
) -> LatentStatistics | None:
    """Encodes every image once and returns the statistics of its posteriors.

    images: uint8 [K, H, W] by position, all of one size; the processes of torch.distributed share
    them and all get the same result. Unreadable images are left out. stop: as of own_batches; where
    it says so, None is returned. watch: sees each batch, its images [n, K, H, W] uint8 on the
    device and the means of their posteriors [n, C, h, w]. Raises ArgumentError when the encoder
    gives NaN or no image can be read.
    """
    codec, accumulator = VAECodec(vae), LatentAccumulator(vae.config.latent_channels)
    device = torch.device(device)
    batches = own_batches(images, batch_size, num_workers, progress, stop)
    try:
        with full_precision(), codec.prepared(device):
            for batch in (batch for batch in batches if batch.count):
                pictures = batch.images.to(device)
                posterior = codec.encode(pictures)
                latents = posterior.mean[: batch.count]
                accumulator.update(latents, posterior.logvar[: batch.count])
                watch(batch, pictures[: batch.count], latents)
    except Interrupted:
        return None
    statistics = accumulator.result()
    if not math.isfinite(statistics.global_std):
        raise ArgumentError(
            "the encoder gives NaN or infinity for some images; there is no statistic"
        )
    return statistics
