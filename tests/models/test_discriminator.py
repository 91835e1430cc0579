"""The patch discriminator: shapes, initialisation, and what each normalisation promises."""

from __future__ import annotations

import pytest
import torch

from modules.models.discriminator import NORM_TYPES, NLayerDiscriminator
from modules.models.modes import eval_mode, frozen


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_logits_are_a_map_of_patches(norm_type: str) -> None:
    network = NLayerDiscriminator(ndf=8, norm_type=norm_type, num_groups=4)
    # Three halvings of 64 and two 4x4 convolutions of stride 1.
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 1, 6, 6)


def test_default_is_pix2pixs_network_of_seventy_pixel_patches() -> None:
    network = NLayerDiscriminator()
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64, 128, 256, 512, 1]
    assert [m.stride[0] for m in convolutions] == [2, 2, 2, 1, 1]
    receptive_field = 1
    for layer in reversed(convolutions):
        receptive_field = (receptive_field - 1) * layer.stride[0] + 4
    assert receptive_field == 70


@pytest.mark.parametrize("norm_type", ["spectral", "spectral_group", "group", "none"])
def test_an_image_is_judged_alone(norm_type: str) -> None:
    network = NLayerDiscriminator(ndf=8, norm_type=norm_type, num_groups=4).eval()
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(network(images)[:1], network(images[:1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_spectral_norm_bounds_every_layer_in_low_precision_too(dtype: torch.dtype) -> None:
    network = NLayerDiscriminator(ndf=8, num_groups=4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(20.0)
    images = torch.randn(1, 3, 32, 32)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        for _ in range(50):
            network(images)
    for layer in network.eval().model:
        if isinstance(layer, torch.nn.Conv2d):
            sigma = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
            assert sigma.item() == pytest.approx(1.0, abs=0.02)


def test_weights_without_spectral_norm_start_small() -> None:
    network = NLayerDiscriminator(norm_type="group")
    weights = torch.cat([
        m.weight.flatten() for m in network.modules() if isinstance(m, torch.nn.Conv2d)
    ])  # fmt: skip
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)


def test_batch_statistics_are_never_remembered() -> None:
    network = NLayerDiscriminator(ndf=8, norm_type="batch")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(torch.full((2, 3, 32, 32), torch.nan))
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_wrong_norm_or_groups_are_refused_by_flag() -> None:
    with pytest.raises(ValueError, match="--disc_norm_type=layer"):
        NLayerDiscriminator(norm_type="layer")
    with pytest.raises(ValueError, match="--disc_num_groups=3"):
        NLayerDiscriminator(ndf=8, num_groups=3)


def test_frozen_network_passes_gradients_on_and_keeps_none() -> None:
    network = NLayerDiscriminator(ndf=8, num_groups=4)
    network.model[1].eval()
    network.model[0].bias.requires_grad_(False)
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    with frozen(network):
        assert not any(parameter.requires_grad for parameter in network.parameters())
        network(images).sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(buffers[name], value) for name, value in network.named_buffers())
    # Each part is back in its own mode, not in one common mode.
    assert network.training
    assert not network.model[1].training
    assert not network.model[0].bias.requires_grad
    assert network.model[2].bias is None or network.model[2].bias.requires_grad


def test_modes_are_restored_after_an_error() -> None:
    network = NLayerDiscriminator(ndf=8, num_groups=4)
    for mode in (eval_mode, frozen):
        with pytest.raises(KeyError), mode(network):
            raise KeyError
        assert all(module.training for module in network.modules())
        assert all(parameter.requires_grad for parameter in network.parameters())
