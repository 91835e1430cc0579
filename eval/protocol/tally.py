"""One model's numbers while they are being collected."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from eval.metrics.artefacts import border_error, halo
from eval.metrics.columns import GRIDS
from eval.metrics.image import (
    PSNR_CAP,
    color_bias,
    high_frequency_ratio,
    low_frequency_error,
    mean_squared_error,
    psnr,
    ssim,
)
from eval.protocol.codecs import Codec, Reconstruction
from eval.protocol.loading import Batch
from eval.protocol.protocol import Protocol
from eval.protocol.results import Evaluation, Kept
from modules.data.images.images import normalize
from modules.distributed.reduce import gather_from_processes, sum_over_processes
from modules.image_modes import over_views
from modules.models.latents import LatentAccumulator, kl_per_channel

NOT_PER_IMAGE = ("psnr_pooled", "rfid", *GRIDS)


class Tally:
    """One model's results while they are being collected, at the positions this process has."""

    def __init__(
        self, codec: Codec, keys: Sequence[str], total: int, latents: bool, num_samples: int
    ) -> None:
        per_image = [key for key in keys if key not in NOT_PER_IMAGE]
        if codec.latent_channels is None:
            per_image = [key for key in per_image if key != "kl"]
        self.codec = codec
        self.keys = ["mse", *per_image]
        self.values = torch.zeros(total, len(self.keys), dtype=torch.float64)
        self.bad = torch.zeros(total, dtype=torch.int64)
        self.num_samples = num_samples
        self.samples: list[Kept] = []
        self.latents = None
        if latents and codec.latent_channels:
            self.latents = LatentAccumulator(codec.latent_channels)
        self.seconds = 0.0

    def add(
        self, batch: Batch, originals: Tensor, networks: Mapping[str, nn.Module], protocol: Protocol
    ) -> Reconstruction:
        """Reconstructs a filled batch, measures the images that are really in it."""
        start = time.perf_counter()
        output = self.codec.reconstruct(originals, batch.filled_positions, protocol)
        finite = output.finite[: batch.count]
        self.seconds += time.perf_counter() - start
        numbers = measure_batch(self.keys, originals, output, networks)
        positions = torch.tensor(batch.positions)
        for column, key in enumerate(self.keys):
            values = numbers[key][: batch.count]
            self.values[positions, column] = torch.where(finite, values, torch.nan)
        self.bad[positions] = (~finite).long()
        if self.latents and finite.any():
            mean, logvar = (m[: batch.count][finite] for m in (output.mean, output.logvar))
            self.latents.update(mean, logvar)
        for row, position in enumerate(batch.positions):
            if position < self.num_samples:
                latent = None if output.mean is None else output.mean[row].cpu()
                pair = originals[row].cpu(), output.images[row].cpu()
                self.samples.append(Kept(position, *pair, latent))
        return output

    def finish(
        self,
        unreadable: dict[int, str],
        content: str,
        missing: dict[str, str],
        rfid: float | None,
        grids: dict[str, float],
    ) -> Evaluation:
        """The results of all processes."""
        values = sum_over_processes(self.values).numpy().copy()
        values[list(unreadable)] = np.nan
        nan_images = sum_over_processes(self.bad).nonzero().flatten().tolist()
        missing = dict(missing)
        if rfid is not None and nan_images:
            rfid, missing["rfid"] = None, f"{len(nan_images)} reconstructions are not finite"
        elif rfid is not None and not np.isfinite(rfid):
            rfid, missing["rfid"] = None, "fewer than 2 images, or other ones than before"
        usable = len(values) - len(unreadable) - len(nan_images)
        return Evaluation(
            per_image=dict(zip(self.keys, values.T, strict=True)),
            unreadable=unreadable,
            nan_images=nan_images,
            rfid=rfid,
            grids=grids,
            latents=self.latents.result() if self.latents and usable else None,
            missing=missing,
            samples=sorted(gather_from_processes(self.samples), key=lambda kept: kept.position),
            content=content,
            seconds=self.seconds,
        )


def measure_batch(
    keys: Sequence[str],
    originals: Tensor,
    output: Reconstruction,
    networks: Mapping[str, nn.Module],
) -> dict[str, Tensor]:
    """At least `keys` for every image of a batch, each [B] float64 on the CPU.

    originals: [B, K, H, W] uint8. All but "rec" and "kl" are means over the RGB views.
    """
    mse = over_views(mean_squared_error, originals, output.images)
    numbers = {"mse": mse, "psnr": psnr(mse).clamp(max=PSNR_CAP)}
    if "ssim" in keys:
        numbers["ssim"] = over_views(ssim, originals, output.images)
    if "color_bias_r" in keys:
        bias = over_views(color_bias, originals, output.images)
        numbers.update({f"color_bias_{name}": bias[:, c] for c, name in enumerate("rgb")})
    if "low_frequency" in keys:
        numbers["low_frequency"] = over_views(low_frequency_error, originals, output.images)
        numbers["high_frequency"] = over_views(high_frequency_ratio, originals, output.images)
    if "border" in keys:
        numbers["border"] = over_views(border_error, originals, output.images)
        numbers["halo"] = over_views(halo, originals, output.images)
    for name, network in networks.items():
        if f"lpips_{name}" in keys:
            distances = over_views(network, normalize(originals), normalize(output.images))
            numbers[f"lpips_{name}"] = distances.flatten().cpu().double()
    if "rec_l1" in keys:
        error = normalize(originals) - output.values
        numbers["rec_l1"] = error.abs().mean(dim=(1, 2, 3)).cpu().double()
        numbers["rec_l2"] = error.square().mean(dim=(1, 2, 3)).cpu().double()
    if "kl" in keys:
        numbers["kl"] = kl_per_channel(output.mean.cpu(), output.logvar.cpu()).sum(dim=1)
    return numbers
