"""One training sample: a crop and the noise of its posterior, both owned by a place in the stream.

What is drawn for a sample depends on (seed, epoch, index) and on its position in the endless stream
of samples, never on the worker or process that draws it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image, ImageOps
from torch import Tensor

from modules.data.images.images import UnreadableImage, random_crop
from modules.data.images.images import to_uint8_tensor as to_tensor
from modules.errors import RunStopped
from modules.image_modes import in_mode
from modules.seeding import seed_for

if TYPE_CHECKING:
    from modules.data.sources.parts import ImageSource

MAX_ATTEMPTS = 100  # pictures tried in a row for one sample; so many failures are no accident
UNREADABLE, TOO_SMALL = "unreadable", "too small"


class Rejection(NamedTuple):
    """A picture that was not used."""

    label: str
    reason: str
    kind: str  # UNREADABLE or TOO_SMALL


class Sample(NamedTuple):
    """image: uint8 [K, H, W]; noise: standard normal float32 [C, h, w]."""

    image: Tensor
    noise: Tensor
    upscaled: bool  # the picture was smaller than the crop, which is therefore blurred
    rejected: list[Rejection]  # pictures that were tried first


@dataclass(frozen=True)
class SampleMaker:
    """How a picture becomes a sample.

    resolution: R, side of a square crop in pixels. latent_shape: (C, h, w) of its noise; other
    crops have noise in proportion. crop: "random" or "center". random_flip: mirror half of the
    samples. interpolation: "lanczos" or "bicubic". min_image_size: pictures with a shorter side
    below this are rejected. train_resolutions: what each batch draws its resolution from, if not R.
    fast_jpeg_decoding: large JPEGs need not be decoded whole. image_mode: L, RGB or RGBA.
    """

    resolution: int
    latent_shape: tuple[int, int, int]
    seed: int
    crop: str = "random"
    random_flip: bool = True
    interpolation: str = "lanczos"
    min_image_size: int | None = None
    train_resolutions: tuple[int, ...] | None = None
    fast_jpeg_decoding: bool = False
    image_mode: str = "RGB"

    def resolution_at(self, position: int) -> int:
        """The resolution of the batch of all processes that begins at `position`.

        It is the same for all of them: they wait for each other, so the slowest sets the pace.
        """
        choices = self.train_resolutions or (self.resolution,)
        return choices[seed_for(self.seed, "resolution", position) % len(choices)]

    def make(
        self,
        candidates: Iterable[tuple[ImageSource, int]],
        position: int,
        draw: tuple[int, int],
        resolution: int,
        shape: tuple[int, int] | None = None,
    ) -> Sample:
        """The sample at `position`, from the first candidate that can be used.

        candidates: (source, index) of pictures. draw: what the crop and the mirroring belong to.
        resolution: of the batch. shape: (H, W), if not a square of it. Raises RunStopped when
        MAX_ATTEMPTS candidates in a row cannot be used.
        """
        rejected: list[Rejection] = []
        shape = shape or (resolution, resolution)
        least = max(resolution, self.min_image_size or 0) if self.fast_jpeg_decoding else None
        for source, index in islice(candidates, MAX_ATTEMPTS):
            try:
                picture = source.open(index, least)
            except UnreadableImage as error:
                rejected.append(Rejection(source.label(index), str(error), UNREADABLE))
                continue
            if self.min_image_size is not None and min(picture.size) < self.min_image_size:
                reason = f"{picture.width}x{picture.height} is below --min_image_size"
                reason += f"={self.min_image_size}"
                rejected.append(Rejection(source.label(index), reason, TOO_SMALL))
                continue
            upscaled = picture.height < shape[0] or picture.width < shape[1]
            image = to_tensor(self._augment(picture, shape, seed_for(self.seed, "crop", *draw)))
            return Sample(image, self._noise(position, shape), upscaled, rejected)
        kinds = Counter(rejection.kind for rejection in rejected)
        raise RunStopped(
            f"{len(rejected)} images in a row could not be used: {kinds[UNREADABLE]} unreadable, "
            f"{kinds[TOO_SMALL]} smaller than --min_image_size={self.min_image_size}; the last one "
            f"was {rejected[-1].label} ({rejected[-1].reason}). Check the data, or lower "
            "--min_image_size"
        )

    def _augment(self, picture: Image.Image, shape: tuple[int, int], seed: int) -> Image.Image:
        draw, picture = random.Random(seed), in_mode(picture, self.image_mode)
        position, mirrored = (draw.random(), draw.random()), draw.random() < 0.5
        if self.crop == "center":
            position = (0.5, 0.5)
        picture = random_crop(picture, shape, position=position, interpolation=self.interpolation)
        return ImageOps.mirror(picture) if self.random_flip and mirrored else picture

    def _noise(self, position: int, shape: tuple[int, int]) -> Tensor:
        channels, *latent = self.latent_shape
        size = [side * n // self.resolution for side, n in zip(latent, shape, strict=True)]
        generator = torch.Generator().manual_seed(seed_for(self.seed, "noise", position))
        return torch.randn(channels, *size, generator=generator)


def collate(samples: list[Sample]) -> dict[str, Any]:
    """A batch of one shape: images uint8 [B, K, H, W], noise float32 [B, C, h, w], what went on.

    upscaled: how many pictures were smaller than the crop, int64 []. rejected: a list of Rejection.
    """
    return {
        "images": torch.stack([sample.image for sample in samples]),
        "noise": torch.stack([sample.noise for sample in samples]),
        "upscaled": torch.tensor(sum(sample.upscaled for sample in samples)),
        "rejected": [rejection for sample in samples for rejection in sample.rejected],
    }
