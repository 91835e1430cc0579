"""Triton kernels of GroupNorm followed by SiLU, forward and backward, on channels_last pictures.

x, y and their gradients are [B, pixels, C] in memory, of any floating type; everything is computed
in float32. Sums over the pixels are split over the programs of a first kernel, added up by group in
a second, and used in a third: no atomics, so the same bits every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 8192  # numbers that a program holds at once
PROGRAMS = 1024  # of a first kernel; a GPU has 20 to 150 processors, each with room for several
ROWS = 32  # of partial sums that are added at once


@triton.jit
def _place(image, pixel, channel, pixels, C: tl.constexpr):
    """Of a number in x; 64 bits, because a batch may have more than 2^31."""
    return (image.to(tl.int64) * pixels + pixel) * C + channel


@triton.jit
def _tile(image, start, pixels, C: tl.constexpr, P: tl.constexpr, C2: tl.constexpr):
    """P pixels from `start` on: places, channels, which numbers there are, and which channels."""
    channel, pixel = tl.arange(0, C2)[None, :], start + tl.arange(0, P)[:, None]
    inside = channel < C
    return _place(image, pixel, channel, pixels, C), channel, inside & (pixel < pixels), inside


@triton.jit
def _store_sums(sums, first, second, C: tl.constexpr, C2: tl.constexpr):
    """Over the pixels of two [P, C2], into this program's place of [B, S, 2, C]."""
    program, image, programs = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    channel = tl.arange(0, C2)
    sums += (image * programs + program) * 2 * C + channel
    tl.store(sums, tl.sum(first, 0), channel < C)
    tl.store(sums + C, tl.sum(second, 0), channel < C)


@triton.jit
def _sums_of_input(x, sums, pixels, middle, C: tl.constexpr, P: tl.constexpr, C2: tl.constexpr):
    """[B, S, 2, C]: of x - x[middle], which keeps the digits of a large mean, and squares.

    Not x[0]: a corner is half made of padding, and unlike the rest of a plain picture.
    """
    image, channel = tl.program_id(1), tl.arange(0, C2)[None, :]
    middles = x + _place(image, middle, channel, pixels, C)
    shift = tl.load(middles, channel < C, 0.0).to(tl.float32)
    first, second = tl.zeros((P, C2), tl.float32), tl.zeros((P, C2), tl.float32)
    for start in range(tl.program_id(0) * P, pixels, tl.num_programs(0) * P):
        at, _, here, _ = _tile(image, start, pixels, C, P, C2)
        value = tl.where(here, tl.load(x + at, here, 0.0).to(tl.float32) - shift, 0.0)
        first += value
        second += value * value
    _store_sums(sums, first, second, C, C2)


@triton.jit
def _add_up(sums, programs, C: tl.constexpr, D: tl.constexpr, D2: tl.constexpr, R: tl.constexpr):
    """The two sums of a group's channels, each [D2], over all programs."""
    image, group = tl.program_id(0), tl.program_id(1)
    channel, row = tl.arange(0, D2)[None, :], tl.arange(0, R)[:, None]
    sums += image * programs * 2 * C + group * D
    first, second = tl.zeros((R, D2), tl.float32), tl.zeros((R, D2), tl.float32)
    for start in range(0, programs, R):
        here = (channel < D) & (start + row < programs)
        at = sums + (start + row) * 2 * C + channel
        first += tl.load(at, here, 0.0)
        second += tl.load(at + C, here, 0.0)
    return tl.sum(first, 0), tl.sum(second, 0)


@triton.jit
def _moments(
    x, sums, moments, pixels, middle, programs, eps,
    C: tl.constexpr, D: tl.constexpr, D2: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """[B, G, 2]: mean and 1 / deviation of a group."""
    image, group = tl.program_id(0), tl.program_id(1)
    first, second = _add_up(sums, programs, C, D, D2, R)
    channel = tl.arange(0, D2)
    inside = channel < D
    shift = tl.load(x + _place(image, middle, group * D + channel, pixels, C), inside, 0.0)
    means = shift.to(tl.float32) + first / pixels
    mean = tl.sum(tl.where(inside, means, 0.0)) / D
    inner = tl.maximum(second - first * first / pixels, 0.0) / pixels
    variance = tl.sum(tl.where(inside, inner + (means - mean) * (means - mean), 0.0)) / D
    moments += (image * tl.num_programs(1) + group) * 2
    tl.store(moments, mean)
    tl.store(moments + 1, tl.rsqrt(variance + eps))


@triton.jit
def _normalised(x, moments, weight, bias, at, image, channel, here, inside,
                C: tl.constexpr, D: tl.constexpr):  # fmt: skip
    """x^, w x^ + b, w and 1 / deviation, at a tile."""
    moments += (image * (C // D) + channel // D) * 2
    deviation = tl.load(moments + 1, inside, 0.0)
    normal = (tl.load(x + at, here, 0.0).to(tl.float32) - tl.load(moments, inside, 0.0)) * deviation
    w = tl.load(weight + channel, inside, 0.0).to(tl.float32)
    return normal, normal * w + tl.load(bias + channel, inside, 0.0).to(tl.float32), w, deviation


@triton.jit
def _output(
    x, y, moments, weight, bias, pixels,
    C: tl.constexpr, D: tl.constexpr, P: tl.constexpr, C2: tl.constexpr,
):  # fmt: skip
    """silu(w x^ + b)."""
    image = tl.program_id(1)
    at, channel, here, inside = _tile(image, tl.program_id(0) * P, pixels, C, P, C2)
    _, linear, _, _ = _normalised(x, moments, weight, bias, at, image, channel, here, inside, C, D)
    tl.store(y + at, (linear * tl.sigmoid(linear)).to(y.dtype.element_ty), here)


@triton.jit
def _before_silu(x, dy, moments, weight, bias, at, image, channel, here, inside,
                 C: tl.constexpr, D: tl.constexpr):  # fmt: skip
    """The gradient of w x^ + b, x^, w and 1 / deviation, at a tile."""
    normal, linear, w, deviation = _normalised(
        x, moments, weight, bias, at, image, channel, here, inside, C, D
    )
    sigmoid = tl.sigmoid(linear)
    upstream = tl.load(dy + at, here, 0.0).to(tl.float32)
    return upstream * sigmoid * (1 + linear * (1 - sigmoid)), normal, w, deviation


@triton.jit
def _sums_of_gradient(
    x, dy, moments, weight, bias, sums, pixels,
    C: tl.constexpr, D: tl.constexpr, P: tl.constexpr, C2: tl.constexpr,
):  # fmt: skip
    """[B, S, 2, C]: of g, the gradient of w x^ + b, and of g x^."""
    image = tl.program_id(1)
    first, second = tl.zeros((P, C2), tl.float32), tl.zeros((P, C2), tl.float32)
    for start in range(tl.program_id(0) * P, pixels, tl.num_programs(0) * P):
        at, channel, here, inside = _tile(image, start, pixels, C, P, C2)
        gradient, normal, _, _ = _before_silu(
            x, dy, moments, weight, bias, at, image, channel, here, inside, C, D
        )
        first += gradient
        second += gradient * normal
    _store_sums(sums, first, second, C, C2)


@triton.jit
def _means_of_gradient(
    sums, weight, by_channel, means, pixels, programs,
    C: tl.constexpr, D: tl.constexpr, D2: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """[B, 2, C]: the sums of g and g x^; [B, G, 2]: the means of w g and w g x^ over a group."""
    image, group = tl.program_id(0), tl.program_id(1)
    first, second = _add_up(sums, programs, C, D, D2, R)
    channel = tl.arange(0, D2)
    inside = channel < D
    by_channel += image * 2 * C + group * D + channel
    tl.store(by_channel, first, inside)
    tl.store(by_channel + C, second, inside)
    w = tl.load(weight + group * D + channel, inside, 0.0).to(tl.float32)
    means += (image * tl.num_programs(1) + group) * 2
    tl.store(means, tl.sum(w * first) / pixels / D)
    tl.store(means + 1, tl.sum(w * second) / pixels / D)


@triton.jit
def _gradient(
    x, dy, dx, moments, weight, bias, means, pixels,
    C: tl.constexpr, D: tl.constexpr, P: tl.constexpr, C2: tl.constexpr,
):  # fmt: skip
    """(w g - mean(w g) - x^ mean(w g x^)) / deviation."""
    image = tl.program_id(1)
    at, channel, here, inside = _tile(image, tl.program_id(0) * P, pixels, C, P, C2)
    gradient, normal, w, deviation = _before_silu(
        x, dy, moments, weight, bias, at, image, channel, here, inside, C, D
    )
    means += (image * (C // D) + channel // D) * 2
    first, second = tl.load(means, inside, 0.0), tl.load(means + 1, inside, 0.0)
    value = (w * gradient - first - normal * second) * deviation
    tl.store(dx + at, value.to(dx.dtype.element_ty), here)


class _Plan:
    """How the work on x [B, C, h, w] in G groups is cut up."""

    def __init__(self, x: Tensor, groups: int) -> None:
        batch, channels, height, width = x.shape
        self.pixels, self.shape = height * width, (batch, groups)
        self.middle = height // 2 * width + width // 2
        wide = triton.next_power_of_2(channels)
        tile = max(1, min(TILE // wide, triton.next_power_of_2(self.pixels)))
        tiles = triton.cdiv(self.pixels, tile)
        self.programs = max(1, min(tiles, PROGRAMS // batch))
        self.summing, self.applying = (self.programs, batch), (tiles, batch)
        self.sizes = {"C": channels, "D": channels // groups}
        self.tile = {"P": tile, "C2": wide, "num_warps": 8}
        self.group = {"D2": triton.next_power_of_2(channels // groups), "R": ROWS}
        self.sums = x.new_empty(batch, self.programs, 2, channels, dtype=torch.float32)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """silu(group_norm(x)) in `dtype`, and what `backward` needs: [B, G, 2] moments.

    x: [B, C, h, w] in channels_last, as the result is. weight, bias: [C].
    """
    plan = _Plan(x, groups)
    y = torch.empty_like(x, dtype=dtype)
    moments = x.new_empty(*plan.shape, 2, dtype=torch.float32)
    sizes, group, tile, pixels = plan.sizes, plan.group, plan.tile, plan.pixels
    _sums_of_input[plan.summing](x, plan.sums, pixels, plan.middle, C=sizes["C"], **tile)
    _moments[plan.shape](
        x, plan.sums, moments, pixels, plan.middle, plan.programs, eps, **sizes, **group
    )
    _output[plan.applying](x, y, moments, weight, bias, pixels, **sizes, **tile)
    return y, moments


def backward(
    dy: Tensor, x: Tensor, moments: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and [2, C] of bias and weight. dy, x: [B, C, h, w] in channels_last."""
    plan = _Plan(x, moments.shape[1])
    dx, means = torch.empty_like(x), torch.empty_like(moments)
    by_channel = moments.new_empty(len(x), 2, x.shape[1])
    given, pixels = (moments, weight, bias), plan.pixels
    sizes, group, tile = plan.sizes, plan.group, plan.tile
    _sums_of_gradient[plan.summing](x, dy, *given, plan.sums, pixels, **sizes, **tile)
    _means_of_gradient[plan.shape](
        plan.sums, weight, by_channel, means, pixels, plan.programs, **sizes, **group
    )
    _gradient[plan.applying](x, dy, dx, *given, means, pixels, **sizes, **tile)
    return dx, by_channel.sum(0)
