"""How much worse a changed picture comes out of changed latents than out of its own."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from eval.metrics.image import PSNR_CAP, mean_squared_error, psnr
from eval.protocol.codecs import VAECodec, quantize
from modules.data.images.images import normalize
from modules.errors import ArgumentError
from modules.image_modes import over_views
from modules.training.equivariance import Change

HALF, TURN, MIRROR = "half size", "quarter turn", "mirrored"


def changes(height: int, width: int) -> dict[str, Change]:
    """What a gap is measured for, on latents of that size; an odd side is halved downwards."""
    if min(height, width) < 2:
        raise ArgumentError(
            f"--resolution gives latents of {width}x{height}, which cannot be halved; raise it"
        )
    half = Fraction(height // 2, height), Fraction(width // 2, width)
    return {HALF: Change(half), TURN: Change(turns=1), MIRROR: Change(mirrored=True)}


@dataclass(frozen=True)
class Gap:
    """PSNR in dB, means over images: of T(x) encoded and decoded, and of decoded T(z)."""

    native: float
    changed: float

    @property
    def decibels(self) -> float:
        """What is lost by changing latents rather than pictures."""
        return self.native - self.changed


class GapMeter:
    """Sums PSNRs batch by batch."""

    def __init__(self, codec: VAECodec) -> None:
        self.codec, self.count = codec, 0
        self.sums: dict[str, Tensor] = {}

    def add(self, images: Tensor, latents: Tensor) -> None:
        """images: [B, K, H, W] uint8; latents: [B, C, h, w], the posterior's mean."""
        self.count += len(images)
        self._sum("", images, latents)
        for name, change in changes(*latents.shape[2:]).items():
            changed = quantize(change(normalize(images)), "nearest")
            self._sum(name, changed, self.codec.encode(changed).mean, change(latents))

    def _sum(self, name: str, images: Tensor, *latents: Tensor) -> None:
        outputs = [quantize(self.codec.vae.decode(z).sample, "nearest") for z in latents]
        decibels = [psnr(over_views(mean_squared_error, images, output)) for output in outputs]
        total = torch.stack(decibels).clamp(max=PSNR_CAP).sum(dim=1)
        self.sums[name] = self.sums.get(name, 0) + total

    def result(self) -> tuple[float, dict[str, Gap]]:
        """PSNR of plain reconstructions, and the gap of each change."""
        means = {name: (total / self.count).tolist() for name, total in self.sums.items()}
        plain = means.pop("")[0]
        return plain, {name: Gap(*mean) for name, mean in means.items()}
