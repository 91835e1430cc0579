"""Metrics agree with independent implementations and with what they mean."""

from __future__ import annotations

import math

import pytest
import torch
from eval_fixtures import noisy, photographs, random_images
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from eval.metrics.image import (
    color_bias,
    high_frequency_ratio,
    low_frequency_error,
    mean_squared_error,
    psnr,
    ssim,
)


def skimage_ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    return structural_similarity(
        a.numpy(),
        b.numpy(),
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
    )


def pairs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    smooth, rough = photographs(4, 64), random_images(3, 64)
    return [
        (smooth, noisy(smooth, 3.0)),
        (smooth, noisy(smooth, 40.0)),
        (rough, random_images(3, 64, seed=9)),
        (smooth, 255 - smooth),
        (torch.full((1, 3, 40, 23), 255, dtype=torch.uint8), random_images(1, 40)[..., :23]),
    ]


@pytest.mark.parametrize("case", range(5))
def test_psnr_and_ssim_are_scikit_images(case):
    images, reconstructions = pairs()[case]
    ours_psnr = psnr(mean_squared_error(images, reconstructions))
    ours_ssim = ssim(images, reconstructions)
    for row, (a, b) in enumerate(zip(images, reconstructions, strict=True)):
        theirs = peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=255)
        assert ours_psnr[row].item() == pytest.approx(theirs, abs=1e-10)
        assert ours_ssim[row].item() == pytest.approx(skimage_ssim(a, b), abs=1e-5)


def test_ssim_needs_a_whole_window_and_takes_exactly_one():
    images = random_images(2, 11)
    other = random_images(2, 11, seed=5)
    expected = [skimage_ssim(a, b) for a, b in zip(images, other, strict=True)]
    assert ssim(images, other).tolist() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match=r"at least 11x11 pixels, these are 11x10"):
        ssim(images[:, :, 1:], other[:, :, 1:])


def test_identical_images_are_perfect_in_every_metric():
    for images in (photographs(2), torch.full((2, 3, 32, 32), 7, dtype=torch.uint8)):
        assert psnr(mean_squared_error(images, images)).tolist() == [math.inf] * 2
        assert ssim(images, images).tolist() == pytest.approx([1.0] * 2, abs=1e-6)
        assert color_bias(images, images).abs().max() == 0
        assert low_frequency_error(images, images).max() == 0
        assert high_frequency_ratio(images, images).tolist() == [1.0] * 2


def test_two_constant_images_score_by_their_luminance_alone():
    a, b = (torch.full((1, 3, 32, 32), level, dtype=torch.uint8) for level in (100, 110))
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b).item() == pytest.approx(
        (2 * 100 * 110 + c1) / (100**2 + 110**2 + c1), abs=1e-5
    )
    assert psnr(mean_squared_error(a, b)).item() == pytest.approx(20 * math.log10(25.5))


def test_squared_errors_are_exact_integers_even_at_the_extremes():
    black, white = (torch.full((1, 3, 256, 256), level, dtype=torch.uint8) for level in (0, 255))
    assert mean_squared_error(black, white).item() == 255**2
    assert mean_squared_error(white, black).item() == 255**2


def test_a_colour_cast_shows_in_its_channel_with_its_sign():
    images = photographs(2).clamp(20, 200)
    cast = images.clone()
    cast[:, 0] += 6
    cast[:, 2] -= 9
    assert color_bias(images, cast).tolist() == [[6.0, 0.0, -9.0]] * 2


def test_low_frequency_error_sees_blotches_and_ignores_fine_noise():
    images = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    blotches = images.clone()
    blotches[..., :32, :] += 10
    blotches[..., 32:, :] -= 10
    checkers = images.clone()
    checkers[..., ::2, ::2] += 10
    checkers[..., ::2, 1::2] -= 10
    assert low_frequency_error(images, blotches).item() == pytest.approx(10.0)
    assert low_frequency_error(images, checkers).item() == pytest.approx(0.0)


def test_high_frequency_ratio_is_below_one_for_blur_and_above_for_noise():
    images = photographs(3, 64)
    blurred = torch.nn.functional.avg_pool2d(images.float(), 3, 1, 1).round().to(torch.uint8)
    assert high_frequency_ratio(images, blurred).max() < 0.5
    assert high_frequency_ratio(images, noisy(images, 20.0)).min() > 1.2


def test_metrics_refuse_floats_and_unequal_shapes():
    images = random_images(2)
    for metric, pair in ((mean_squared_error, [images.float()] * 2), (ssim, (images, images[:1]))):
        with pytest.raises(ValueError, match=r"two batches \[B, 3, H, W\] of uint8"):
            metric(*pair)


def test_an_image_scores_the_same_alone_and_in_a_batch():
    images, other = photographs(3), noisy(photographs(3), 10.0)
    for metric in (mean_squared_error, ssim, low_frequency_error, high_frequency_ratio):
        together = metric(images, other)
        alone = torch.cat([metric(images[i : i + 1], other[i : i + 1]) for i in range(3)])
        assert torch.equal(together, alone)
