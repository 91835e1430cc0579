"""The start that already sees."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from modules.data.images.images import normalize, to_uint8_tensor
from modules.data.images.synthetic import SyntheticImages
from modules.errors import ArgumentError
from modules.models.autoencoder import build_autoencoder
from modules.models.resampler_init import start_as_resampler


def pictures(count: int = 4, resolution: int = 64) -> torch.Tensor:
    source = SyntheticImages(count, resolution)
    return normalize(torch.stack([to_uint8_tensor(source.open(index)) for index in range(count)]))


@pytest.mark.parametrize(
    ("widths", "groups", "channels"),
    [((16, 32, 64, 64), 2, 4), ((128, 128, 128, 128), 32, 4), ((12, 24, 24, 24), 3, 16)],
)
def test_reconstruction_starts_as_the_average_of_each_square(
    widths: tuple[int, ...], groups: int, channels: int
) -> None:
    torch.manual_seed(0)
    vae = build_autoencoder(
        block_out_channels=widths, layers_per_block=1, norm_num_groups=groups,
        latent_channels=channels,
    )  # fmt: skip
    start_as_resampler(vae)
    images = pictures()
    squares = F.avg_pool2d(images, 8)
    posterior = vae.encode(images).latent_dist
    output = vae.decode(posterior.mode()).sample
    # The image's own energy beside K in the groups' deviation costs some contrast, no more.
    assert F.mse_loss(posterior.mean[:, :3], squares).sqrt() < 0.1
    wanted = F.interpolate(squares, scale_factor=8)
    assert F.mse_loss(output, wanted).sqrt() < 0.15
    assert F.mse_loss(output, images) < 1.3 * F.mse_loss(wanted, images)


def test_every_weight_learns_after_the_first_step() -> None:
    torch.manual_seed(0)
    vae = build_autoencoder(
        block_out_channels=(16, 16, 32, 32), layers_per_block=1, norm_num_groups=2
    )
    start_as_resampler(vae)
    optimizer, images = torch.optim.SGD(vae.parameters(), lr=1e-2), pictures(2)
    for _ in range(2):
        optimizer.zero_grad()
        posterior = vae.encode(images).latent_dist
        output = vae.decode(posterior.mean + posterior.std * torch.randn_like(posterior.mean))
        (F.mse_loss(output.sample, images) + 1e-6 * posterior.kl().mean()).backward()
        optimizer.step()
    still = [name for name, p in vae.named_parameters() if not p.grad.abs().sum() > 0]
    assert [name for name in still if not name.endswith("to_k.bias")] == []  # softmax ignores it


def test_groups_and_latents_that_cannot_carry_an_image_are_refused() -> None:
    for options, message in (
        ({"norm_num_groups": 8}, "--norm_num_groups=8"),
        ({"norm_num_groups": 2, "latent_channels": 2}, "--latent_channels"),
    ):
        vae = build_autoencoder(block_out_channels=(16,) * 4, layers_per_block=1, **options)
        with pytest.raises(ArgumentError, match=message):
            start_as_resampler(vae)
