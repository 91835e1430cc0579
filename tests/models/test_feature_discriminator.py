"""Heads on frozen features: what learns, what is saved, and that every layer counts alike."""

from __future__ import annotations

import pytest
import torch

from eval.memory.random_lpips import random_lpips
from modules.models.feature_discriminator import FeatureDiscriminator
from modules.models.lpips import build_lpips


def feature_discriminator(backbone: str = "alex", **options: object) -> FeatureDiscriminator:
    with random_lpips():
        perceptual = build_lpips(backbone)
    torch.manual_seed(0)
    return FeatureDiscriminator(
        perceptual, perceptual.network.chns, 8, **{"num_groups": 4} | options
    )


@pytest.mark.parametrize(("backbone", "layers", "side"), [("vgg", 5, 64), ("squeeze", 7, 31)])
def test_logits_are_maps_as_large_as_the_finest_features(backbone, layers, side):
    logits = feature_discriminator(backbone)(torch.rand(2, 3, 64, 64) * 2 - 1)
    assert logits.shape == (2, layers, side, side)


def test_every_layer_counts_alike():
    network = feature_discriminator("vgg").eval()
    images, found = torch.rand(2, 3, 64, 64) * 2 - 1, []
    for head in network.heads:
        head.register_forward_hook(lambda _head, _inputs, logits: found.append(logits.mean()))
    mean = network(images).mean()
    torch.testing.assert_close(mean, torch.stack(found).mean())


@pytest.mark.parametrize("norm_type", ["spectral", "spectral_group", "group", "none"])
def test_an_image_is_judged_alone(norm_type):
    network = feature_discriminator(norm_type=norm_type).eval()
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(network(images)[:1], network(images[:1]))
    real, fake = network(images[:1], images[1:2])
    torch.testing.assert_close(torch.cat([real, fake]), network(images[:2]))


def test_grey_is_seen_repeated_and_transparent_images_over_black_and_over_white():
    network = feature_discriminator().eval()
    grey, colours = torch.rand(1, 1, 64, 64) * 2 - 1, torch.rand(1, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(network(grey), network(grey.expand(-1, 3, -1, -1)))
    opaque = network(torch.cat([colours, torch.ones_like(grey)], dim=1))
    torch.testing.assert_close(opaque, network(colours).repeat(1, 2, 1, 1))


def test_heads_alone_learn_and_are_saved_and_the_eyes_go_with_them():
    network = feature_discriminator()
    eyes = {name: value.clone() for name, value in network.perceptual.state_dict().items()}
    assert all(name.startswith("heads.") for name in network.state_dict())
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    real, fake = network(images, -images)
    (fake.mean() - real.mean()).backward()
    optimizer.step()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in network.perceptual.parameters())
    after = network.perceptual.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in eyes.items())
    network.to(torch.float64)
    assert {tensor.dtype for tensor in network.perceptual.parameters()} == {torch.float64}


def test_a_width_that_the_groups_do_not_divide_is_refused_by_flag():
    with pytest.raises(ValueError, match="--disc_num_groups=3"):
        feature_discriminator(num_groups=3)
