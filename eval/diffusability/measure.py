"""How well a diffusion model will learn an autoencoder's latents, as far as it can be foretold."""

from __future__ import annotations

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
from eval.metrics.fid import StreamedFID
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
    samples: list[Tensor]  # PICTURES or fewer, [K, H, W] uint8


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

    data, reference: uint8 [K, H, W] by position, of one size. features: uint8 [B, K, H, W] to a
    tuple with [B, D], for the Fréchet distances; None leaves them out. Raises ArgumentError where
    numbers are not finite.
    """
    gap = GapMeter(codec)
    labels = [f"{kind} {seed}" for seed in range(seeds) for kind in ("ifid", "samples")]
    fid = None if features is None else StreamedFID(features.to(device), labels)

    def look(images: Tensor, latents: Tensor) -> None:
        gap.add(images, latents)
        if fid is not None:
            fid.add_originals(images, len(images))

    with all_prepared([codec], device), TemporaryDirectory(prefix="latents-") as folder:
        options = {"device": device, "batch_size": batch_size, "num_workers": num_workers,
                   "progress": progress}  # fmt: skip
        known = store_latents(codec, reference, Path(folder, "reference"), **options)
        own = store_latents(codec, data, Path(folder, "data"), **options, watch=look)
        scale = Scale.of(known.statistics)
        known, own = known.scaled(scale), own.scaled(scale)
        losses, shown, (count, *shape) = [], [], own.values.shape
        for seed in range(seeds):
            network = train_denoiser(known.values, steps, seed, device)
            losses.append(validation_loss(network, own.values, device))
            made = {"ifid": interpolated(own, known, seed),
                    "samples": sampled(network, count, shape, seed, device)}  # fmt: skip
            for kind, latents in made.items():
                for part in (part for whole in latents for part in whole.split(batch_size)):
                    images = scale.decode(codec, part, device)
                    if fid is not None:
                        everyone = torch.ones(len(images), dtype=torch.bool)
                        fid.add_reconstructions(f"{kind} {seed}", images, everyone, len(images))
                    if kind == "samples" and len(shown) < PICTURES:
                        shown += images[: PICTURES - len(shown)].cpu()
    distances = fid.finish("") if fid else {}
    plain, gaps = gap.result()
    return Diffusability(
        num_images=len(own.values),
        num_reference=len(known.values),
        num_shared=int(torch.isin(own.digests, known.digests).sum()),
        psnr=plain,
        gaps=gaps,
        latents=known.statistics,
        loss=losses,
        ifid=[distances[f"ifid {seed}"] for seed in range(seeds) if fid],
        sample_fid=[distances[f"samples {seed}"] for seed in range(seeds) if fid],
        samples=shown,
    )
