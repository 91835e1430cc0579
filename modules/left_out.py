"""Pictures that stand in a folder and are not read: counted and named, with what to do about it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container, Iterable
from contextlib import suppress

from modules.image_kinds import remedy, suffixes
from modules.images import UnreadableImage, holds_picture

MAX_SNIFFED = 20  # kinds of unknown files, of each of which one is opened


def left_out(paths: Iterable[str], read: Container[str] | None = None) -> str:
    """Such as "8 .heic (pip install pillow-heif)"; empty where no picture is left out.

    paths: local ones. read: the suffixes that are read, where they are fewer than `suffixes()`.
    """
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for path in paths:
        suffix = os.path.splitext(path)[1].lower()
        counts[suffix] += 1
        examples.setdefault(suffix, path)
    fixes = {suffix: remedy(suffix) for suffix in counts}
    if read is not None:
        ignored = [suffix for suffix in counts if suffix in suffixes() and suffix not in read]
        fixes |= dict.fromkeys(ignored, "pass the folder as --train_data_dir")
    unknown = [s for s, _ in counts.most_common() if fixes[s] is None and s not in suffixes()]
    for suffix in unknown[:MAX_SNIFFED]:
        with suppress(UnreadableImage):
            if holds_picture(examples[suffix]):
                fixes[suffix] = "give them the ending of their format"
    named = sorted((suffix, fix) for suffix, fix in fixes.items() if fix is not None)
    return ", ".join(f"{counts[s]:,} {ascii(s)[1:-1] or 'without ending'} ({f})" for s, f in named)
