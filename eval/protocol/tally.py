"""One model's numbers while they are being collected."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from eval.metrics.artefacts import border_error, flat_images, grid_energy, halo
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
from eval.protocol.loading import Batch, from_all_processes
from eval.protocol.protocol import Protocol
from eval.protocol.results import Evaluation, Kept
from modules.data.images.images import normalize, to_uint8_tensor
from modules.distributed.reduce import gather_from_processes
from modules.image_modes import in_mode, over_views, to_picture
from modules.models.latents import LatentAccumulator, kl_per_channel

NOT_PER_IMAGE = ("psnr_pooled", "rfid", *GRIDS)
WITHOUT_LATENTS = 8  # the f of baselines: JPEG's block


class Tally:
    """One model's results while they are being collected, of the images of this process."""

    def __init__(self, codec: Codec, keys: Sequence[str], latents: bool, num_samples: int) -> None:
        absent = (*NOT_PER_IMAGE, "kl") if codec.latent_channels is None else NOT_PER_IMAGE
        self.keys = ["mse", *(key for key in keys if key not in absent)]
        self.grids = {key: math.nan for key in keys if key in GRIDS}
        self.codec, self.num_samples = codec, num_samples
        self.rows: dict[int, list[float]] = {}  # by position; NaN where the output is not finite
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
        rows = torch.stack([numbers[key][: batch.count] for key in self.keys], dim=1)
        rows[~finite] = torch.nan
        self.rows |= zip(batch.positions, rows.tolist(), strict=True)
        if self.latents and finite.any():
            mean, logvar = (m[: batch.count][finite] for m in (output.mean, output.logvar))
            self.latents.update(mean, logvar)
        for row, position in enumerate(batch.positions):
            if position < self.num_samples:
                latent = None if output.mean is None else output.mean[row].cpu()
                pair = originals[row].cpu(), output.images[row].cpu()
                self.samples.append(Kept(position, *pair, latent))
        return output

    def look_for_grids(self, batch_size: int, protocol: Protocol, device: torch.device) -> None:
        """Measures GRIDS, where asked for, on nine flat colours, which need no data.

        Of the unclamped output, so that neither rounding nor the end of the scale hides a grid.
        """
        if not self.grids:
            return
        factor = max(2, self.codec.factor or WITHOUT_LATENTS)
        pictures = [in_mode(to_picture(flat), protocol.image_mode) for flat in flat_images(factor)]
        parts = torch.stack(list(map(to_uint8_tensor, pictures))).to(device).split(batch_size)
        values = [self.codec.reconstruct(p, range(len(p)), protocol).values for p in parts]
        levels = 127.5 * torch.cat(values)
        for name, period in zip(GRIDS, (factor, max(2, factor // 2), 2), strict=True):
            energy = grid_energy(levels, factor, period)
            self.grids[name] = energy.square().mean().sqrt().item()

    def finish(
        self,
        unreadable: dict[int, str],
        content: str,
        missing: dict[str, str],
        total: int,
        rfid: float | None,
    ) -> Evaluation:
        """The results of all processes on `total` images, of which at least one is readable."""
        rows = from_all_processes(self.rows)
        values = np.full((total, len(self.keys)), np.nan)
        values[list(rows)] = list(rows.values())
        nan_images = [position for position, (mse, *_) in rows.items() if math.isnan(mse)]
        missing = dict(missing)
        if rfid is not None and nan_images:
            rfid, missing["rfid"] = None, f"{len(nan_images)} reconstructions are not finite"
        elif rfid is not None and not math.isfinite(rfid):
            rfid, missing["rfid"] = None, "fewer than 2 images, or other ones than before"
        return Evaluation(
            per_image=dict(zip(self.keys, values.T, strict=True)),
            unreadable=unreadable,
            nan_images=nan_images,
            rfid=rfid,
            grids=self.grids,
            latents=self.latents.result() if self.latents and len(rows) > len(nan_images) else None,
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

    originals: [B, K, H, W] uint8. networks: of LPIPS, by backbone. All but "rec" and "kl" are means
    over the RGB views.
    """
    pair = originals, output.images
    mse = over_views(mean_squared_error, *pair)
    numbers = {"mse": mse, "psnr": psnr(mse).clamp(max=PSNR_CAP)}
    measures = {
        "ssim": ssim,
        "low_frequency": low_frequency_error,
        "high_frequency": high_frequency_ratio,
        "border": border_error,
        "halo": halo,
    }
    numbers |= {key: over_views(measures[key], *pair) for key in keys if key in measures}
    if "color_bias_r" in keys:
        bias = over_views(color_bias, *pair)
        numbers |= {f"color_bias_{name}": bias[:, c] for c, name in enumerate("rgb")}
    for name, network in networks.items():
        if f"lpips_{name}" in keys:
            distances = over_views(network, *map(normalize, pair))
            numbers[f"lpips_{name}"] = distances.flatten().cpu().double()
    if "rec_l1" in keys:
        error = normalize(originals) - output.values
        numbers["rec_l1"] = error.abs().mean(dim=(1, 2, 3)).cpu().double()
        numbers["rec_l2"] = error.square().mean(dim=(1, 2, 3)).cpu().double()
    if "kl" in keys:
        numbers["kl"] = kl_per_channel(output.mean.cpu(), output.logvar.cpu()).sum(dim=1)
    return numbers
