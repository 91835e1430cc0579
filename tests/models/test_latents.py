"""Latent statistics are those of the latents, and normalise them to unit scale."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from eval_fixtures import TensorImages, photographs, tiny_vae

from eval.protocol.latents import measure_latents
from modules.models.latents import (
    NORMALIZATIONS,
    SPECTRUM_BINS,
    LatentAccumulator,
    kl_per_channel,
    posterior_spread,
)


def posterior(count=64, seed=0):
    """Means and log-variances [count, 4, 8, 8] of channels with different moments."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([1.0, 3.0, 0.5, 2.0]).view(1, 4, 1, 1)
    shift = torch.tensor([0.0, 4.0, -1.0, 0.5]).view(1, 4, 1, 1)
    mean = torch.randn(count, 4, 8, 8, generator=generator) * scale + shift
    mean[:, 3] += mean[:, 0]  # correlated
    logvar = torch.randn(count, 4, 8, 8, generator=generator) - 2.0
    return mean, logvar


def accumulate(mean, logvar, batch=7):
    accumulator = LatentAccumulator(mean.shape[1])
    for parts in zip(mean.split(batch), logvar.split(batch), strict=True):
        accumulator.update(*parts)
    return accumulator.result()


def sampled(mean, logvar, seed=1):
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed))
    return (mean + torch.exp(0.5 * logvar) * noise).double()


def test_moments_are_those_of_sampled_latents():
    mean, logvar = posterior(count=1000)
    found = accumulate(mean, logvar, batch=100)
    z = sampled(mean, logvar)
    flat = z.transpose(0, 1).flatten(1)
    assert found.num_images == 1000
    assert found.global_mean == pytest.approx(z.mean().item(), abs=0.01)
    assert found.global_std == pytest.approx(z.flatten().std().item(), rel=0.005)
    assert found.channel_mean == pytest.approx(flat.mean(dim=1).tolist(), abs=0.02)
    assert found.channel_std == pytest.approx(flat.std(dim=1).tolist(), rel=0.01)
    assert torch.tensor(found.covariance) == pytest.approx(torch.cov(flat).float(), abs=0.1)


def test_without_noise_the_moments_are_exact():
    mean, _ = posterior()
    found = accumulate(mean, torch.full_like(mean, -60.0))
    flat = mean.double().transpose(0, 1).flatten(1)
    assert found.channel_std == pytest.approx(flat.std(dim=1, correction=0).tolist(), rel=1e-12)
    assert found.global_std == pytest.approx(flat.flatten().std(correction=0).item(), rel=1e-12)
    covariance = torch.tensor(found.covariance, dtype=torch.float64)
    torch.testing.assert_close(covariance, torch.cov(flat, correction=0))


def test_batches_do_not_matter():
    mean, logvar = posterior()
    small, large = accumulate(mean, logvar, 1), accumulate(mean, logvar, 64)
    assert small.channel_std == pytest.approx(large.channel_std, rel=1e-12)
    for ours, theirs in zip(small.spectrum, large.spectrum, strict=True):
        assert ours == (theirs if theirs is None else pytest.approx(theirs, rel=1e-12))
    assert small.kl == pytest.approx(large.kl, rel=1e-12)


def test_kl_is_diffusers_in_nats_per_image():
    mean, logvar = posterior(count=5)
    theirs = DiagonalGaussianDistribution(torch.cat([mean, logvar], dim=1)).kl()
    assert kl_per_channel(mean, logvar).sum(dim=1).tolist() == pytest.approx(
        theirs.tolist(), rel=1e-5
    )
    found = accumulate(mean, logvar)
    assert found.kl == pytest.approx(theirs.mean().item(), rel=1e-5)
    assert sum(found.kl_per_channel) == pytest.approx(found.kl)
    standard = torch.zeros(3, 4, 8, 8)
    assert accumulate(standard, standard).kl == 0


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_each_normalization_brings_latents_to_unit_scale(kind):
    mean, logvar = posterior(count=500)
    entries = accumulate(mean, logvar).normalization(kind)
    z = sampled(mean, logvar)
    shift = torch.tensor(entries["latents_mean"] or [entries["shift_factor"] or 0.0])
    std = torch.tensor(entries["latents_std"] or [1.0])
    normal = (z - shift.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1) * entries["scaling_factor"]
    assert normal.std().item() == pytest.approx(1.0, rel=0.01)
    if kind != "scale":
        assert normal.mean().item() == pytest.approx(0.0, abs=0.01)
    if kind == "per_channel":
        assert normal.std(dim=(0, 2, 3)).tolist() == pytest.approx([1.0] * 4, rel=0.02)


def test_scale_alone_is_latent_diffusions_factor_and_clears_what_is_stale():
    mean, logvar = posterior()
    found = accumulate(mean, logvar)
    assert found.normalization("scale") == {
        "scaling_factor": 1 / found.global_std,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
    }


def test_dead_channels_are_noise_or_constants_and_small_live_ones_are_not():
    mean, logvar = posterior()
    mean[:, 0], logvar[:, 0] = 0.01 * mean[:, 0], 0.0  # its noise is 100 times its signal
    mean[:, 1], logvar[:, 1] = 5.0 + 1e-4 * mean[:, 1], -30.0  # all but constant, and sure of it
    mean[:, 2], logvar[:, 2] = 0.2 * mean[:, 2], -20.0  # small, but all signal
    assert accumulate(mean, logvar).dead_channels == [0, 1]


def test_white_latents_have_a_flat_spectrum_of_their_variance_and_smooth_ones_fall():
    generator = torch.Generator().manual_seed(0)
    white = 2 * torch.randn(200, 2, 32, 32, generator=generator)
    logvar = torch.full_like(white, -60.0)
    assert accumulate(white, logvar).spectrum == pytest.approx([4.0] * SPECTRUM_BINS, rel=0.1)
    smooth = torch.nn.functional.avg_pool2d(white, 3, 1, 1)
    spectrum = accumulate(smooth, logvar).spectrum
    assert spectrum[-1] < 0.1 * spectrum[1]
    tiny = accumulate(white[..., :2, :2], logvar[..., :2, :2]).spectrum
    assert tiny[:-1] == [None] * (SPECTRUM_BINS - 1)


def test_the_spread_of_a_batch_is_that_of_its_statistics():
    mean, logvar = posterior()
    found = accumulate(mean, logvar)
    spread = posterior_spread(DiagonalGaussianDistribution(torch.cat([mean, logvar], dim=1)))
    assert spread["latent_std"].item() == pytest.approx(found.global_std, rel=1e-5)
    assert spread["posterior_std"].item() == pytest.approx(found.posterior_std, rel=1e-5)
    assert found.posterior_std == pytest.approx(logvar.exp().mean().sqrt().item(), rel=1e-5)


def test_perfectly_correlated_channels_show_in_the_eigenvalues():
    mean, _ = posterior()
    mean[:, 1] = -2 * mean[:, 0]
    found = accumulate(mean[:, :2], torch.full_like(mean[:, :2], -60.0))
    assert found.correlation_eigenvalues == pytest.approx([2.0, 0.0], abs=1e-9)


def test_constant_latents_cannot_be_normalised():
    constant = torch.ones(2, 4, 8, 8)
    with pytest.raises(ValueError, match="cannot be normalised"):
        accumulate(constant, torch.full_like(constant, -1e4)).normalization()
    with pytest.raises(ValueError, match="--normalization=whiten must be one of scale"):
        accumulate(*posterior()).normalization("whiten")
    with pytest.raises(ValueError, match="no images"):
        LatentAccumulator(4).result()


def test_a_pass_over_images_measures_the_encoder_and_leaves_it_as_it_was():
    vae, images = tiny_vae().train(), photographs(5)
    found = measure_latents(vae, TensorImages(images, damaged=[3]), batch_size=2, progress=False)
    assert vae.training
    with torch.no_grad():
        kept = images[[0, 1, 2, 4]].float() / 127.5 - 1
        expected = vae.eval().encode(kept).latent_dist
    assert found.num_images == 4
    assert found.kl == pytest.approx(expected.kl().mean().item(), rel=1e-5)
    assert found.global_mean == pytest.approx(expected.mean.mean().item(), abs=1e-6)


def test_an_encoder_that_gives_nan_is_an_error_not_a_statistic():
    vae = tiny_vae()
    vae.encoder.conv_in.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        measure_latents(vae, TensorImages(photographs(2)), progress=False)
