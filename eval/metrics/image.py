"""Image metrics as pure functions of two batches of 8-bit images; one number per image.

images, reconstructions: [B, 3, H, W] uint8, because that is what a viewer sees. Each returns [B]
float64 on the CPU, if nothing else is said. Sums of squares are exact integers, so PSNR does not
depend on the device. Filters are sums of shifted images, which no reduced-precision convolution
mode (TF32) can touch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PEAK = 255.0
PSNR_CAP = 100.0  # dB, in means only: one level of error in one element of a 256² image is 101 dB
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_CONSTANTS = ((0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2)
LOW_FREQUENCY_BOX = 16
# Energy that rounding to integers alone puts into the 5-point Laplacian: 1/12 per pixel times the
# kernel's squared norm. It keeps the ratio of two flat images at 1 instead of 0 / 0.
LAPLACIAN_ROUNDING_ENERGY = 20.0 / 12.0


def mean_squared_error(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean squared error of each image in squared 8-bit levels, exact."""
    _check(images, reconstructions)
    squared = (images.int() - reconstructions.int()).square()
    return squared.sum(dim=(1, 2, 3)).cpu().double() / images[0].numel()


def psnr(mean_squared_errors: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(255² / MSE); identical images give inf.

    mean_squared_errors: any shape, squared levels. Average `psnr(mse).clamp(max=PSNR_CAP)` over
    images for the mean of dB, or take `psnr(mse.mean())` for the pooled figure; they differ.
    """
    return 10.0 * torch.log10(PEAK**2 / mean_squared_errors)


def ssim(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of each image, mean over windows and channels.

    Gaussian windows of 11x11 with sigma 1.5, range 255, K = (0.01, 0.03), population covariance,
    only windows that lie inside the image. Equal to scikit-image's `structural_similarity` with
    `gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255`, which computes
    the same windows by cropping 5 pixels from each border.

    In [-1, 1]. Raises ValueError when a side is shorter than the window.
    """
    _check(images, reconstructions)
    if min(images.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs images of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, these are "
            f"{images.shape[-1]}x{images.shape[-2]}; raise --resolution or omit ssim from --metrics"
        )
    x, y = images.float(), reconstructions.float()
    # Variances are differences of squares: about the image's own mean they lose no digits.
    offset = x.mean(dim=(-2, -1), keepdim=True)
    x, y = x - offset, y - offset
    moments = _gaussian_windows(torch.stack([x, y, x * x, y * y, x * y]))
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = moments
    var_x, var_y = mean_xx - mean_x**2, mean_yy - mean_y**2
    covariance = mean_xy - mean_x * mean_y
    mean_x, mean_y = mean_x + offset, mean_y + offset
    c1, c2 = SSIM_CONSTANTS
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean(dim=(-2, -1)).cpu().double().mean(dim=1)


def color_bias(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean of reconstruction minus image, in 8-bit levels: a colour cast's sign. Returns [B, 3]."""
    _check(images, reconstructions)
    difference = reconstructions.int() - images.int()
    return difference.sum(dim=(2, 3)).cpu().double() / images[0, 0].numel()


def low_frequency_error(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Root mean square difference of 16x16 box averages, in 8-bit levels: blotches and drifts.

    Pixels beyond the last whole box are left out; a smaller image is one box.
    """
    _check(images, reconstructions)
    difference = reconstructions.float() - images.float()
    box = [min(LOW_FREQUENCY_BOX, side) for side in images.shape[-2:]]
    averages = F.avg_pool2d(difference, box)
    return averages.square().mean(dim=(1, 2, 3)).cpu().double().sqrt()


def high_frequency_ratio(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Laplacian energy of the reconstruction over that of the image: below 1 is blur.

    1 is as sharp as the original, above 1 means invented or amplified detail. Both energies carry
    the energy of rounding to integers, so that a flat image reconstructed flat scores 1. Sides of
    at least 3.
    """
    _check(images, reconstructions)
    return _laplacian_energy(reconstructions) / _laplacian_energy(images)


def _laplacian_energy(images: Tensor) -> Tensor:
    x = images.int()
    neighbours = x[..., 2:, 1:-1] + x[..., :-2, 1:-1] + x[..., 1:-1, 2:] + x[..., 1:-1, :-2]
    laplacian = neighbours - 4 * x[..., 1:-1, 1:-1]
    energy = laplacian.square().sum(dim=(1, 2, 3)).cpu().double() / laplacian[0].numel()
    return energy + LAPLACIAN_ROUNDING_ENERGY


def _gaussian_windows(maps: Tensor) -> Tensor:
    """Gaussian averages of `maps` [..., H, W] over every window inside: [..., H - 10, W - 10]."""
    radius = SSIM_WINDOW // 2
    weights = [math.exp(-0.5 * (k / SSIM_SIGMA) ** 2) for k in range(-radius, radius + 1)]
    total = sum(weights)
    for dim in (-2, -1):
        length = maps.shape[dim] - SSIM_WINDOW + 1
        averages = torch.zeros_like(maps.narrow(dim, 0, length))
        for k, weight in enumerate(weights):
            averages.add_(maps.narrow(dim, k, length), alpha=weight / total)
        maps = averages
    return maps


def _check(images: Tensor, reconstructions: Tensor) -> None:
    given = [(batch.dtype, tuple(batch.shape)) for batch in (images, reconstructions)]
    if given[0] != given[1] or images.dtype != torch.uint8 or images.dim() != 4:
        raise ValueError(f"metrics compare two batches [B, 3, H, W] of uint8, got {given}")
