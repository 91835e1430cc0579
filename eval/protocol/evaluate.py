"""Every model over every image once: `evaluate_reconstruction`, also for training's validation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from eval.metrics.columns import keys_of
from eval.metrics.fid import Reference, StreamedFID
from eval.metrics.networks import Networks
from eval.protocol.choices import DEFAULT_BATCH_SIZE
from eval.protocol.codecs import Codec, all_prepared
from eval.protocol.loading import from_all_processes, own_batches
from eval.protocol.protocol import Protocol
from eval.protocol.results import Evaluation
from eval.protocol.tally import Tally


@torch.no_grad()
def evaluate_reconstruction(
    models: Mapping[str, Codec],
    images: Dataset[Tensor],
    metrics: Sequence[str],
    *,
    protocol: Protocol | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    device: torch.device | str = "cpu",
    networks: Networks | None = None,
    reference: Reference | None = None,
    latents: bool = False,
    num_samples: int = 0,
    num_workers: int = 0,
    progress: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Evaluation]:
    """Reconstructs every image with every model, in one pass, and measures what `metrics` names.

    images: uint8 [K, H, W] by position; under torch.distributed every rank of P takes each P-th and
    all ranks return the same numbers.
    metrics: names of `eval.metrics.columns.METRICS`; one whose network is not among `networks` is
    reported as missing, with the reason if they have one. reference: what rFID knows of the same
    images from an earlier call, or learns in this one.
    `latents`: also LatentStatistics of the models that have a posterior. `num_samples`: so many of
    the first images are kept with their reconstructions.
    `stop`: asked between batches, by all processes together; where it says so, Interrupted is
    raised in all of them.

    Batches are filled up to `batch_size` (by repeating an image), because the size chooses the
    kernels and with them the last digits. Modes, precision and memory format are put back.
    """
    device, protocol = torch.device(device), protocol or Protocol()
    networks = networks or Networks()
    lpips, inception = networks.lpips, networks.inception
    for network in (*lpips.values(), inception):
        if network is not None:
            network.to(device)
    given = {f"lpips_{name}" for name in lpips} | ({"rfid"} if inception is not None else set())
    missing = {
        key: networks.unavailable.get(key, "its network was not given")
        for key in keys_of(metrics)
        if key.startswith(("lpips_", "rfid")) and key not in given
    }
    keys = [key for key in keys_of(metrics) if key not in missing]
    fid = StreamedFID(inception, list(models), reference) if "rfid" in keys else None
    tallies = {label: Tally(codec, keys, latents, num_samples) for label, codec in models.items()}
    digests: dict[int, int] = {}
    unreadable: dict[int, str] = {}
    size = 1 if protocol.crop == "full" else batch_size  # images of that crop differ in size
    with all_prepared(models.values(), device):
        for batch in own_batches(images, size, num_workers, progress, stop):
            digests |= zip(batch.positions, batch.digests, strict=True)
            unreadable |= batch.unreadable
            if not batch.count:
                continue
            originals = batch.images.to(device)
            if fid:
                fid.add_originals(originals, batch.count)
            for label, tally in tallies.items():
                output = tally.add(batch, originals, lpips, protocol)
                if fid:
                    fid.add_reconstructions(label, output.images, output.finite, batch.count)
        digests, unreadable = from_all_processes(digests), from_all_processes(unreadable)
        if not digests:
            first = next(iter(unreadable.values()), "the set is empty")
            raise ValueError(f"--data: none of {len(images)} images could be read ({first})")
        pixels = repr(tuple(digests.get(position, 0) for position in range(len(images))))
        content = hashlib.blake2b(pixels.encode(), digest_size=16).hexdigest()
        distances = fid.finish(content) if fid else {}
        for tally in tallies.values():
            tally.look_for_grids(size, protocol, device)
    return {
        label: tally.finish(unreadable, content, missing, len(images), distances.get(label))
        for label, tally in tallies.items()
    }
