"""What the tests of evaluation share: generated images, a tiny VAE, tiny networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from eval.protocol.protocol import Protocol, ProtocolImages
from modules.data.images.images import UnreadableImage
from modules.data.images.synthetic import SyntheticImages
from modules.models.autoencoder import build_autoencoder

RESOLUTION = 32


class TensorImages(torch.utils.data.Dataset):
    """uint8 images by position; those at `damaged` raise UnreadableImage."""

    def __init__(self, images: Tensor, damaged: Sequence[int] = ()) -> None:
        self.images, self.damaged = images, damaged

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Tensor:
        if position in self.damaged:
            raise UnreadableImage("damaged on purpose")
        return self.images[position]


def photographs(count: int, resolution: int = RESOLUTION, seed: int = 0) -> Tensor:
    """Images with the statistics of photographs, [count, 3, R, R] uint8."""
    source = SyntheticImages(count, resolution, seed)
    return torch.stack(list(ProtocolImages(source, Protocol(resolution=resolution))))


def random_images(count: int, resolution: int = RESOLUTION, seed: int = 0) -> Tensor:
    """Independent uniform pixels, [count, 3, R, R] uint8."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, resolution, resolution)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def noisy(images: Tensor, levels: float, seed: int = 1) -> Tensor:
    """`images` with Gaussian noise of so many levels, clamped and rounded."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + levels * noise).round().clamp(0, 255).to(torch.uint8)


def tiny_vae(seed: int = 0, factor: int = 4, channels: int = 4) -> AutoencoderKL:
    """An f4 or f8 autoencoder with random weights and a few thousand parameters, in eval mode."""
    torch.manual_seed(seed)
    widths = (8,) * factor.bit_length()
    return build_autoencoder(
        downsample_factor=factor,
        latent_channels=channels,
        block_out_channels=widths,
        layers_per_block=1,
    ).eval()


class TinyFeatures(FeatureExtractorBase):
    """A stand-in for Inception whose features keep real distances: projections of 4x4 averages."""

    WIDTH = 12

    def __init__(self, name: str, features_list: Sequence[str], **kwargs: object) -> None:
        super().__init__(name, list(features_list))
        weight = torch.randn(self.WIDTH, 48, generator=torch.Generator().manual_seed(3))
        self.projection = nn.Parameter(weight, requires_grad=False)
        self.calls = 0

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """One layer."""
        return ("tiny",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """The one layer."""
        return "tiny"

    @staticmethod
    def can_be_compiled() -> bool:
        """No."""
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        """Any image."""
        return torch.zeros(1, 3, 8, 8, dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """images: [B, 3, H, W] uint8 to one feature tensor [B, WIDTH]."""
        self.calls += 1
        averages = nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1)
        return (averages @ self.projection.T,)


def tiny_inception() -> TinyFeatures:
    """The stand-in, ready for `Networks(inception=...)`."""
    return TinyFeatures("tiny-features", ["tiny"])


class PixelDistance(nn.Module):
    """A stand-in for LPIPS: mean absolute difference of images in [-1, 1], [B]."""

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """images, reconstructions: [B, 3, H, W]."""
        return (images - reconstructions).abs().mean(dim=(1, 2, 3))
