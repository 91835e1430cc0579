"""A sequence of pictures, and those made of others: some of one, or several in a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from modules.data.images.images import decode, upright_shape
from modules.errors import ArgumentError
from modules.seeding import seed_for


class ImageSource(Protocol):
    """A finite sequence of pictures in a fixed order. name: of the whole, for logs and stamps."""

    name: str

    def __len__(self) -> int: ...

    def open(self, index: int, target: int | None = None) -> Image.Image:
        """The picture in mode RGB or RGBA, upright. Raises UnreadableImage.

        target: the shorter side, in pixels, that decoding must not fall short of; None: all.
        """
        ...

    def label(self, index: int) -> str:
        """What a person finds the picture by: its path or its row."""
        ...

    def shape(self, index: int) -> tuple[int, int]:
        """(height, width) of the picture, upright, from its header. Raises UnreadableImage."""
        ...

    def fingerprint(self) -> str:
        """Changes with the files that the pictures come from."""
        ...


class EncodedImages(ImageSource):
    """Pictures as bytes or files."""

    def encoded(self, index: int) -> bytes | str:
        """What `decode` takes. Raises UnreadableImage where there is nothing."""
        raise NotImplementedError

    def open(self, index: int, target: int | None = None) -> Image.Image:
        return decode(self.encoded(index), target)

    def shape(self, index: int) -> tuple[int, int]:
        return upright_shape(self.encoded(index))


class View(ImageSource):
    """Pictures of other sources, under their labels there."""

    def find(self, index: int) -> tuple[ImageSource, int]:
        """The source that a picture is from, and its place there."""
        raise NotImplementedError

    def open(self, index: int, target: int | None = None) -> Image.Image:
        source, place = self.find(index)
        return source.open(place, target)

    def label(self, index: int) -> str:
        source, place = self.find(index)
        return source.label(place)

    def shape(self, index: int) -> tuple[int, int]:
        source, place = self.find(index)
        return source.shape(place)


class Subset(View):
    """Pictures `indices` of another source, in that order."""

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self.source, self.indices = source, np.asarray(indices, dtype=np.int64)
        self.name = source.name

    def __len__(self) -> int:
        return len(self.indices)

    def find(self, index: int) -> tuple[ImageSource, int]:
        return self.source, int(self.indices[index])

    def fingerprint(self) -> str:
        return self.source.fingerprint()


class Concatenation(View):
    """The pictures of several sources, one after the other."""

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self.sources = tuple(sources)
        self.name = ", ".join(source.name for source in sources)
        self.ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def find(self, index: int) -> tuple[ImageSource, int]:
        number = int(np.searchsorted(self.ends, index, side="right"))
        return self.sources[number], index - int(self.ends[number - 1] if number else 0)

    def fingerprint(self) -> str:
        return " ".join(source.fingerprint() for source in self.sources)


def part_sizes(source: ImageSource) -> tuple[int, ...]:
    """How many pictures are from each source of a Concatenation, or of a subset of one, in order.

    One number for any other source. A subset must be in order.
    """
    if isinstance(source, Concatenation):
        return tuple(len(part) for part in source.sources)
    if isinstance(source, Subset):
        ends = np.cumsum(part_sizes(source.source))
        return tuple(np.diff(np.searchsorted(source.indices, ends), prepend=0).tolist())
    return (len(source),)


def hold_back(source: ImageSource, num_images: int, seed: int) -> tuple[Subset, Subset]:
    """Splits a source into (training, validation); `num_images` random ones, by seed, validate.

    Raises ArgumentError when nothing would remain to train on.
    """
    if not 1 <= num_images < len(source):
        raise ArgumentError(
            f"--num_validation_images={num_images} must be at least 1 and leave something to train "
            f"on: {source.name} has {len(source)} images; lower it or name a validation set"
        )
    order = _random_order(len(source), seed, "hold_back")
    return (
        Subset(source, np.sort(order[num_images:])),
        Subset(source, np.sort(order[:num_images])),
    )


def random_subset(source: ImageSource, num_images: int, seed: int) -> ImageSource:
    """`num_images` random pictures, by seed; the source itself where it has no more."""
    if num_images >= len(source):
        return source
    return Subset(source, np.sort(_random_order(len(source), seed, "subset")[:num_images]))


def _random_order(size: int, seed: int, use: str) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed_for(seed, use))
    return torch.randperm(size, generator=generator).numpy()
