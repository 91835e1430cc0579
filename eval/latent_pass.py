"""Latent statistics of a model over a set of images, by encoding alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.data import Dataset

from eval.choices import DEFAULT_BATCH_SIZE
from eval.codecs import VAECodec
from eval.loading import OwnBatches
from eval.precise import full_precision
from modules.errors import ArgumentError
from modules.latents import LatentAccumulator, LatentStatistics


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
) -> LatentStatistics:
    """Encodes every image once and returns the statistics of its posteriors.

    images: uint8 [3, H, W] by position, all of one size; the processes of torch.distributed share
    them and all get the same result. Unreadable images are left out. stop: as of OwnBatches. Raises
    ArgumentError when the encoder gives NaN or no image can be read.
    """
    codec, accumulator = VAECodec(vae), LatentAccumulator(vae.config.latent_channels)
    device = torch.device(device)
    with full_precision(), codec.prepared(device):
        for batch in OwnBatches(images, batch_size, num_workers, progress, stop):
            if batch.count:
                posterior = codec.encode(batch.images.to(device))
                accumulator.update(posterior.mean[: batch.count], posterior.logvar[: batch.count])
    statistics = accumulator.result()
    if not math.isfinite(statistics.global_std):
        raise ArgumentError(
            "the encoder gives NaN or infinity for some images; there is no statistic"
        )
    return statistics
