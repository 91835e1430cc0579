"""What the protocol offers, and its defaults: plain values, so that `--help` needs no torch."""

from __future__ import annotations

CROPS = ("adm", "resize", "full")
POSTERIORS = ("mode", "sample")
ROUNDINGS = ("nearest", "truncate")
FULL_SIZE_MULTIPLE = 32  # the largest downsampling factor, so that every model sees the same pixels
DEFAULT_RESOLUTION = 256  # pixels
DEFAULT_BATCH_SIZE = 8  # images; part of what makes two runs equal to the last digit
