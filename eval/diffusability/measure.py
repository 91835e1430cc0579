"""How well a diffusion model will learn an autoencoder's latents, as far as it can be foretold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from eval.diffusability.denoiser import sampled, train_denoiser, validation_loss
from eval.diffusability.gap import Gap, GapMeter
from eval.diffusability.interpolation import interpolated
from eval.diffusability.latents_on_disk import Scale, store_latents
from eval.metrics.fid import FeatureStatistics, extract_features, frechet_distance
from eval.protocol.codecs import VAECodec, all_prepared
from modules.models.latents import LatentStatistics

PICTURES = 8  # samples that are shown


@dataclass(frozen=True)
class Diffusability:
    """What was found for one model. Lists have a number for each seed; empty without a network."""

    num_images: int
    num_reference: int
    num_shared: int  # images that are in the reference too
    psnr: float  # of plain reconstructions, dB
    gaps: dict[str, Gap]
    latents: LatentStatistics  # of the reference
    loss: list[float]  # of the denoiser on latents that it has not seen; 2 if it knows nothing
    ifid: list[float]
    sample_fid: list[float]
    samples: Tensor  # [PICTURES or fewer, 3, H, W] uint8, of the first seed


@torch.no_grad()
def measure_diffusability(
    codec: VAECodec,
    data: Dataset[Tensor],
    reference: Dataset[Tensor],
    features: nn.Module | None,
    *,
    steps: int,
    seeds: int,
    batch_size: int,
    device: torch.device,
    num_workers: int = 0,
    progress: bool = False,
) -> Diffusability:
    """Everything at once; memory does not grow with the images, but for an index of the reference.

    data, reference: uint8 [3, H, W] by position, of one size. features: uint8 [B, 3, H, W] to a
    tuple with [B, D], for the Fréchet distances; None leaves them out. Raises ArgumentError where
    numbers are not finite.
    """
    features = None if features is None else features.to(device)
    gap, originals = GapMeter(codec), _Features(features)

    def look(images: Tensor, latents: Tensor) -> None:
        gap.add(images, latents)
        originals.add(images)

    with all_prepared([codec], device), TemporaryDirectory(prefix="latents-") as folder:
        options = {"device": device, "batch_size": batch_size, "num_workers": num_workers,
                   "progress": progress}  # fmt: skip
        known = store_latents(codec, reference, Path(folder, "reference"), **options)
        own = store_latents(codec, data, Path(folder, "data"), **options, watch=look)
        scale = Scale.of(known.statistics)
        known, own = known.scaled(scale), own.scaled(scale)
        losses, ifid, sample_fid, samples = [], [], [], torch.empty(0)

        def pictures(latents: Iterable[Tensor]) -> Iterator[Tensor]:
            for part in latents:
                for some in part.split(batch_size):
                    yield scale.decode(codec, some, device)

        for seed in range(seeds):
            network = train_denoiser(known.values, steps, seed, device)
            losses.append(validation_loss(network, own.values, device))
            shape, count = own.values.shape[1:], len(own.values)
            if seed == 0:
                few = pictures(sampled(network, min(count, PICTURES), shape, seed, device))
                samples = torch.cat(list(few)).cpu()
            if features is not None:
                made = sampled(network, count, shape, seed, device)
                sample_fid.append(originals.distance(pictures(made)))
                ifid.append(originals.distance(pictures(interpolated(own, known, seed))))
    plain, gaps = gap.result()
    return Diffusability(
        num_images=len(own.values),
        num_reference=len(known.values),
        num_shared=int(torch.isin(own.digests, known.digests).sum()),
        psnr=plain,
        gaps=gaps,
        latents=known.statistics,
        loss=losses,
        ifid=ifid,
        sample_fid=sample_fid,
        samples=samples,
    )


class _Features:
    """Statistics of the originals' features, and the Fréchet distance of others' to them."""

    def __init__(self, network: nn.Module | None) -> None:
        self.network, self.statistics = network, None

    def add(self, images: Tensor) -> None:
        if self.network is not None:
            self.statistics = self._updated(self.statistics, images)

    def distance(self, pictures: Iterable[Tensor]) -> float:
        found = None
        for images in pictures:
            found = self._updated(found, images)
        return frechet_distance(self.statistics.result(), found.result())

    def _updated(self, statistics: FeatureStatistics | None, images: Tensor) -> FeatureStatistics:
        features = extract_features(self.network, images)
        statistics = statistics or FeatureStatistics(features.shape[1])
        statistics.update(features)
        return statistics
