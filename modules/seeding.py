"""Randomness that belongs to what is being drawn, not to who draws it."""

from __future__ import annotations

import hashlib


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed that depends on `parts` alone: equal on every machine, process and worker.

    Naming the draw (`seed_for(seed, "crop", epoch, index)`) keeps the streams of different uses
    independent and makes a run's randomness a function of its position, so that resuming, another
    number of workers or another number of processes changes nothing.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
