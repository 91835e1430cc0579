"""Small autoencoders and their tensors in latent-diffusion's layout."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from modules.weights.ldm_layout import to_ldm

SCALE = 0.7  # no published family's


def small_vae(
    levels: int = 2,
    layers: int = 1,
    attention: bool = True,
    quant: bool = True,
    latent: int = 4,
    attending: int | None = None,
) -> AutoencoderKL:
    """The same weights each time. attending: a level inside which there is attention as well."""
    torch.manual_seed(0)
    inside = ["Attn" * (level == attending) for level in range(levels)]
    return AutoencoderKL(
        down_block_types=[f"{level}DownEncoderBlock2D" for level in inside],
        up_block_types=[f"{level}UpDecoderBlock2D" for level in reversed(inside)],
        block_out_channels=[32 * (1 + level % 2) for level in range(levels)],
        layers_per_block=layers,
        latent_channels=latent,
        mid_block_add_attention=attention,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        scaling_factor=SCALE,
    ).eval()


def ldm_tensors(vae: AutoencoderKL, prefix: str = "") -> dict[str, Tensor]:
    """A VAE's tensors in latent-diffusion's layout, as they can be saved."""
    ldm = to_ldm(vae.state_dict(), vae.config)
    return {f"{prefix}{key}": tensor.contiguous() for key, tensor in ldm.items()}


def assert_same_weights(found: AutoencoderKL, expected: AutoencoderKL) -> None:
    """The values of `expected`, in float32."""
    assert found.state_dict().keys() == expected.state_dict().keys()
    for key, tensor in expected.state_dict().items():
        assert found.state_dict()[key].dtype == torch.float32
        assert torch.equal(found.state_dict()[key], tensor.float()), key
