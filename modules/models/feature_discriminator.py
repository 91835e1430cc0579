"""A discriminator that sees with a network trained on photographs, and learns only to judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.image_modes import rgb_views
from modules.models.discriminator import Discriminator
from modules.models.lpips import LPIPS


class FeatureDiscriminator(Discriminator):
    """Heads on the features of LPIPS' frozen network, as in Projected GANs (Sauer et al. 2021).

    Images [B, K, H, W] to logits [B, V * L, h', w'], of V RGB views (two if transparent) and L
    layers: those of coarser layers are repeated to the finest one's map, so that in a mean over all
    logits each layer counts alike. Features are of unit length over channels, as LPIPS compares
    them, times the root of the channels' number. The network belongs to `perceptual` and is no part
    of the state. Raises ValueError for a `width` that the groups do not divide.
    """

    def __init__(
        self,
        perceptual: LPIPS | None,
        channels: Sequence[int],
        width: int = 64,
        norm_type: str = "spectral_group",
        num_groups: int = 32,
    ) -> None:
        super().__init__(norm_type)
        self._perceptual = (perceptual,)  # in a tuple: neither learnt, saved nor synchronised
        self.heads = nn.ModuleList(
            nn.Sequential(
                self._convolution(layer, width, 3),
                self._norm(width, num_groups),
                nn.LeakyReLU(0.2),
                self._convolution(width, 1, 1),
            )
            for layer in channels
        )

    @property
    def perceptual(self) -> LPIPS | None:
        """What it looks through; None where it never judges."""
        return self._perceptual[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FeatureDiscriminator:
        if recurse and self.perceptual is not None:  # it goes where the heads go
            self.perceptual._apply(fn)
        return super()._apply(fn, recurse)

    @property
    def blocks(self) -> list[nn.Module]:
        """The heads."""
        return list(self.heads)

    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, V * L, h', w'] of images [B, K, H, W]."""
        network, maps = self.perceptual.network, []
        for view in rgb_views(images):
            features = network.net(network.scaling_layer(view))
            for head, feature in zip(self.heads, features, strict=True):
                maps.append(head(F.normalize(feature) * feature.shape[1] ** 0.5))
        size = maps[0].shape[2:]
        return torch.cat([F.interpolate(logits, size, mode="nearest") for logits in maps], dim=1)
