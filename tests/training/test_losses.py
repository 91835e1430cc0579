"""The objective's terms against their definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.training.losses import (
    adaptive_d_weight,
    batch_psnr,
    discriminator_loss,
    generator_loss,
    hinge_d_loss,
    kl_loss,
    rec_loss,
    vanilla_d_loss,
)


def test_pixel_losses_are_means_over_all_elements() -> None:
    images, reconstructions = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5)
    assert rec_loss("l1", images, reconstructions) == 0.5
    assert rec_loss("l2", images, reconstructions) == 0.25


def test_kl_of_the_standard_normal_is_zero_and_otherwise_that_of_torch() -> None:
    standard = DiagonalGaussianDistribution(torch.zeros(2, 8, 4, 4))
    assert kl_loss(standard.kl(), 100) == 0
    moments = torch.randn(2, 8, 4, 4)
    mean, logvar = moments.chunk(2, dim=1)
    ours = kl_loss(DiagonalGaussianDistribution(moments).kl(), 192)
    normal = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    theirs = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(ours, theirs.sum() / 2 / 192)


def test_kl_weighs_the_same_at_every_resolution() -> None:
    per_latent = torch.randn(1, 8, 1, 1)
    small = kl_loss(DiagonalGaussianDistribution(per_latent.expand(1, 8, 8, 8)).kl(), 3 * 64**2)
    large = kl_loss(DiagonalGaussianDistribution(per_latent.expand(1, 8, 16, 16)).kl(), 3 * 128**2)
    torch.testing.assert_close(small, large)


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_discriminator_is_rewarded_for_telling_real_from_fake(kind: str) -> None:
    real = torch.zeros(2, 1, 3, 3, requires_grad=True)
    fake = torch.zeros(2, 1, 3, 3, requires_grad=True)
    discriminator_loss(kind, real, fake).backward()
    assert (real.grad < 0).all()  # descending raises the logits of real patches
    assert (fake.grad > 0).all()  # and lowers those of fakes
    right = discriminator_loss(kind, torch.full((1,), 5.0), torch.full((1,), -5.0))
    wrong = discriminator_loss(kind, torch.full((1,), -5.0), torch.full((1,), 5.0))
    assert right < 0.01 < 4 < wrong


def test_generator_is_rewarded_for_fakes_that_look_real() -> None:
    fake = torch.zeros(2, 1, 3, 3, requires_grad=True)
    generator_loss(fake).backward()
    assert (fake.grad < 0).all()


def test_hinge_ignores_what_is_already_told_apart() -> None:
    assert hinge_d_loss(torch.tensor([1.5]), torch.tensor([-1.5])) == 0
    assert hinge_d_loss(torch.zeros(3), torch.zeros(3)) == 1


@given(real=st.floats(-20, 20), fake=st.floats(-20, 20))
@settings(max_examples=30)
def test_vanilla_loss_is_binary_cross_entropy(real: float, fake: float) -> None:
    logits_real, logits_fake = torch.tensor([real]), torch.tensor([fake])
    expected = 0.5 * (
        F.binary_cross_entropy_with_logits(logits_real, torch.ones(1))
        + F.binary_cross_entropy_with_logits(logits_fake, torch.zeros(1))
    )
    torch.testing.assert_close(vanilla_d_loss(logits_real, logits_fake), expected)


@given(scale=st.floats(1e-8, 1e3), maximum=st.floats(0.1, 1e4))
@settings(max_examples=30)
def test_adaptive_weight_is_latent_diffusions_on_both_sides_of_the_clamp(
    scale: float, maximum: float
) -> None:
    nll_gradient, g_gradient = torch.randn(3, 8, 3, 3), scale * torch.randn(3, 8, 3, 3)
    elements = 3 * 64 * 64
    ours = adaptive_d_weight(nll_gradient, g_gradient, elements, maximum)
    theirs = (elements * nll_gradient).norm() / (g_gradient.norm() + 1e-4)
    torch.testing.assert_close(ours, theirs.clamp(0.0, maximum))


def test_logged_psnr_is_in_decibels_of_a_peak_of_two() -> None:
    images = torch.zeros(1, 3, 4, 4)
    assert batch_psnr(images, images + 0.2).item() == pytest.approx(20.0, abs=1e-4)
    assert batch_psnr(images, images + 5.0).item() == pytest.approx(6.02, abs=0.01)  # clamped to 1
    assert torch.isfinite(batch_psnr(images, images))
