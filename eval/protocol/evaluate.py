"""Every model over every image once: `evaluate_reconstruction`, also for training's validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from eval.metrics.columns import GRIDS, keys_of
from eval.metrics.digests import combined_digest
from eval.metrics.fid import Reference, StreamedFID
from eval.protocol.choices import DEFAULT_BATCH_SIZE
from eval.protocol.codecs import Codec, all_prepared
from eval.protocol.flat_colours import grids_of
from eval.protocol.loading import Batch, OwnBatches
from eval.protocol.protocol import Protocol
from eval.protocol.results import Evaluation
from eval.protocol.tally import Tally
from modules.distributed.reduce import gather_from_processes, sum_over_processes


@torch.no_grad()
def evaluate_reconstruction(
    models: Mapping[str, Codec],
    images: Dataset[Tensor],
    metrics: Sequence[str],
    *,
    protocol: Protocol | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    device: torch.device | str = "cpu",
    lpips: Mapping[str, nn.Module] | None = None,
    inception: nn.Module | None = None,
    reference: Reference | None = None,
    unavailable: Mapping[str, str] | None = None,
    latents: bool = False,
    num_samples: int = 0,
    num_workers: int = 0,
    progress: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Evaluation]:
    """Reconstructs every image with every model, in one pass, and measures what `metrics` names.

    images: uint8 [K, H, W] by position; under torch.distributed every rank of P takes each P-th and
    all ranks return the same numbers.
    metrics: names of `eval.metrics.columns.METRICS`. lpips: networks by backbone, ([B, K, H, W] in
    [-1, 1], same) to [B]; inception: `build_inception()`; a metric whose network is not given is
    reported as missing, with the reason in `unavailable` if it has one. reference: what rFID knows
    of the same images from an earlier call, or learns in this one.
    `latents`: also LatentStatistics of the models that have a posterior. `num_samples`: so many of
    the first images are kept with their reconstructions.
    `stop`: asked between batches, by all processes together; where it says so, Interrupted is
    raised in all of them.

    Batches are filled up to `batch_size` (by repeating an image), because the size chooses the
    kernels and with them the last digits. Modes, precision and memory format are put back.
    """
    device, protocol, lpips = torch.device(device), protocol or Protocol(), lpips or {}
    keys, missing = _available(keys_of(metrics), lpips, inception, unavailable or {})
    fid = StreamedFID(inception.to(device), list(models), reference) if "rfid" in keys else None
    networks = {name: network.to(device) for name, network in lpips.items()}
    tallies = {
        label: Tally(codec, keys, len(images), latents, num_samples)
        for label, codec in models.items()
    }
    record = _Record(len(images))
    size = 1 if protocol.crop == "full" else batch_size  # images of that crop differ in size
    with all_prepared(models.values(), device):
        for batch in OwnBatches(images, size, num_workers, progress, stop):
            record.add(batch)
            if not batch.count:
                continue
            originals = batch.images.to(device)
            if fid:
                fid.add_originals(originals, batch.count)
            for label, tally in tallies.items():
                output = tally.add(batch, originals, networks, protocol)
                if fid:
                    fid.add_reconstructions(label, output.images, output.finite, batch.count)
        unreadable, content = record.finish()
        distances = fid.finish(content) if fid else {}
        wanted = any(key in keys for key in GRIDS)
        grids = {label: grids_of(codec, size, protocol, device) if wanted else {}
                 for label, codec in models.items()}  # fmt: skip
    return {
        label: tally.finish(unreadable, content, missing, distances.get(label), grids[label])
        for label, tally in tallies.items()
    }


class _Record:
    """What is known of the originals: each one's hash, and which could not be read."""

    def __init__(self, total: int) -> None:
        self.digests = torch.zeros(total, dtype=torch.int64)
        self.unreadable: list[tuple[int, str]] = []

    def add(self, batch: Batch) -> None:
        """Notes a batch of this process."""
        self.unreadable += batch.unreadable
        for position, digest in zip(batch.positions, batch.digests, strict=True):
            self.digests[position] = digest

    def finish(self) -> tuple[dict[int, str], str]:
        """(unreadable images, content hash) of all processes. Raises ValueError if none is left."""
        digests = sum_over_processes(self.digests)
        unreadable = dict(sorted(gather_from_processes(self.unreadable)))
        if len(unreadable) == len(digests):
            first = next(iter(unreadable.values()), "the set is empty")
            raise ValueError(f"--data: none of {len(digests)} images could be read ({first})")
        return unreadable, combined_digest(*digests.tolist())


def _available(
    keys: Sequence[str],
    lpips: Mapping[str, nn.Module],
    inception: nn.Module | None,
    reasons: Mapping[str, str],
) -> tuple[list[str], dict[str, str]]:
    """(keys that can be measured, why each other one cannot)."""
    given = {f"lpips_{name}" for name in lpips} | ({"rfid"} if inception is not None else set())
    networks = [key for key in keys if key.startswith("lpips_") or key == "rfid"]
    missing = {
        key: reasons.get(key, "its network was not given") for key in networks if key not in given
    }
    return [key for key in keys if key not in missing], missing
