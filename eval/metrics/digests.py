"""Hashes of pixels: whether two measurements were of the same thing."""

from __future__ import annotations

import hashlib

from torch import Tensor


def image_digest(image: Tensor) -> int:
    """A 63-bit hash of one image's pixels and shape. image: [K, H, W] uint8."""
    digest = hashlib.blake2b(repr(tuple(image.shape)).encode(), digest_size=8)
    digest.update(image.cpu().contiguous().numpy())
    return int.from_bytes(digest.digest(), "little") >> 1


def combined_digest(*parts: object) -> str:
    """One hash over the representations of all parts."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
