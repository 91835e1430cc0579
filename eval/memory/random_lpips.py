"""A random backbone for LPIPS, where only its speed or its size matters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import lpips
import torch
from torch import nn

PRETRAINED = lpips.LPIPS


@contextmanager
def random_lpips() -> Iterator[None]:
    """Within, LPIPS is made without a download, of the same random weights every time.

    A file given with --lpips_weights is read all the same.
    """
    with patch.object(lpips, "LPIPS", _random):
        yield


def _random(net: str, **options: bool) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PRETRAINED(net=net, **options | {"pnet_rand": True})
