"""The smallest images that each network and measure can look at, in pixels of the shorter side."""

from __future__ import annotations

from collections.abc import Iterable

from modules.errors import ArgumentError

SSIM_WINDOW = 11
LPIPS = {"vgg": 16, "alex": 31, "squeeze": 17}  # below, a pooling layer has nothing left


def discriminator_side(num_layers: int) -> int:
    """For one logit: every layer halves the side, and the two last convolutions take 1 each."""
    return 3 * 2**num_layers


def require_side(side: int, flag: str, needs: Iterable[tuple[str, int, str]]) -> None:
    """Raises ArgumentError where images of `side` pixels are too small for one of `needs`.

    flag: what gives that side, "--flag=value". needs: (what, its smallest side, how to do without).
    """
    for what, smallest, otherwise in needs:
        if side < smallest:
            raise ArgumentError(
                f"{flag} gives images whose shorter side is {side} pixels; {what} needs "
                f"{smallest}: raise it, or {otherwise}"
            )
