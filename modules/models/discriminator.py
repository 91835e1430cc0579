"""Discriminators: they say of every patch of an image whether it is real."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

NORM_TYPES = ("spectral", "spectral_group", "batch", "group", "none")


class Discriminator(nn.Module):
    """What the training step asks of a discriminator; a subclass says how it judges one batch.

    `norm_type`, one of NORM_TYPES: "spectral_group" (the default) puts spectral norm (Miyato et al.
    2018) on every convolution and GroupNorm between them: neither looks across the batch, so batch
    size 1 works. "batch" needs more than one image per device and SyncBatchNorm across devices.
    Where there is no spectral norm, weights start from Normal(0, 0.02).

    Raises ValueError for an unknown norm type.
    """

    perceptual: nn.Module | None = None  # LPIPS, of one that looks through its network

    def __init__(self, norm_type: str) -> None:
        super().__init__()
        if norm_type not in NORM_TYPES:
            raise ValueError(f"--disc_norm_type={norm_type} must be one of {', '.join(NORM_TYPES)}")
        self.norm_type = norm_type

    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, *, h', w'] of images [B, K, H, W] in [-1, 1]; larger means more real."""
        raise NotImplementedError

    @property
    def blocks(self) -> list[nn.Module]:
        """What is worth compiling: everything that learns, without spectral norm's iteration."""
        raise NotImplementedError

    def forward(
        self, images: Tensor, reconstructions: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The logits of images [B, K, H, W] in [-1, 1].

        With reconstructions, as many, (logits_real, logits_fake): the discriminator's own lesson as
        one graph, which DDP needs. Each half is judged as it is alone, so that what is taught here
        is the function that judges for the VAE: where the norm looks across the batch they share
        no statistics, as in latent-diffusion.
        """
        with parametrize.cached():
            # The power iteration and the division by sigma are too delicate for bfloat16: they run
            # in float32 here, once, and the convolutions below find their weights in the cache.
            with torch.autocast(images.device.type, enabled=False):
                for layer in self.modules():
                    if parametrize.is_parametrized(layer):
                        getattr(layer, "weight", None)
            if reconstructions is None:
                return self.logits(images)
            if self.norm_type == "batch":
                return self.logits(images), self.logits(reconstructions)
            logits_real, logits_fake = self.logits(torch.cat([images, reconstructions])).chunk(2)
            return logits_real, logits_fake

    def _convolution(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, bias: bool = True
    ) -> nn.Module:
        padding = (kernel - 1) // 2
        layer = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=bias)
        if self.norm_type.startswith("spectral"):
            return spectral_norm(layer)
        nn.init.normal_(layer.weight, 0.0, 0.02)
        return layer

    def _norm(self, channels: int, num_groups: int) -> nn.Module:
        if self.norm_type == "batch":
            # Batch statistics always, no running averages: one NaN batch would poison them.
            norm = nn.BatchNorm2d(channels, track_running_stats=False)
            nn.init.normal_(norm.weight, 1.0, 0.02)
            return norm
        if self.norm_type in ("group", "spectral_group"):
            if channels % num_groups:
                raise ValueError(
                    f"--disc_num_groups={num_groups} must divide the discriminator's width "
                    f"{channels}; choose a divisor or change --disc_hidden_channels"
                )
            return nn.GroupNorm(num_groups, channels)
        return nn.Identity()


class NLayerDiscriminator(Discriminator):
    """PatchGAN of pix2pix (Isola et al. 2017): images [B, K, H, W] to logits [B, 1, h', w'].

    4x4 convolutions: `n_layers` of stride 2 that double the width up to 8 `ndf`, then two of
    stride 1. Raises ValueError for a width that the groups do not divide.
    """

    def __init__(
        self,
        input_nc: int = 3,
        ndf: int = 64,
        n_layers: int = 3,
        norm_type: str = "spectral_group",
        num_groups: int = 32,
    ) -> None:
        super().__init__(norm_type)
        widths = [ndf * min(2**level, 8) for level in range(n_layers + 1)]
        layers = [self._convolution(input_nc, ndf, 4, stride=2), nn.LeakyReLU(0.2)]
        for level in range(1, n_layers + 1):
            stride = 2 if level < n_layers else 1
            norm = self._norm(widths[level], num_groups)
            # A bias before a normalisation with its own shift would be redundant.
            biased = isinstance(norm, nn.Identity)
            layers += [self._convolution(widths[level - 1], widths[level], 4, stride, biased)]
            layers += [norm, nn.LeakyReLU(0.2)]
        layers += [self._convolution(widths[-1], 1, 4)]
        self.model = nn.Sequential(*layers)

    @property
    def blocks(self) -> list[nn.Module]:
        """All its layers."""
        return [self.model]

    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, 1, h', w'] of images [B, K, H, W]."""
        return self.model(images)
