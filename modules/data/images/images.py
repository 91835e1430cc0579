"""From the bytes of any image file to an upright picture, its crops, and tensors."""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from modules.data.images.image_kinds import formats, unread_format
from modules.data.images.pixel_parts import JPEG, PNG, pixel_chunks, pixel_segments
from modules.errors import LIBRARY_ERRORS

# 134 million. Decoding takes 8 bytes a pixel, 12 of AVIF and floating point, so never more than 1.6
# GB: JPEG2000 and WebP, which take 20 and 17, stop at half as many. A JPEG may have twice as many:
# it is then decoded at half its size.
MAX_PIXELS = 2**27
PIXEL_LIMITS = {"JPEG": 2 * MAX_PIXELS, "MPO": 2 * MAX_PIXELS, "JPEG2000": MAX_PIXELS // 2,
                "WEBP": MAX_PIXELS // 2}  # fmt: skip
Image.MAX_IMAGE_PIXELS = 2 * MAX_PIXELS  # PIL's own warning would come at 89 million
MAX_WHOLE = 2**28  # bytes of a file in a format that its decoder reads whole
READ_WHOLE = ("AVIF", "HEIF", "JXL", "WEBP")
# A draft is at least this much larger than the target. At just 1.5 times, crops are 38 to 44 dB off
# those of a full decode (bicubic is 43 to 45 off Lanczos) and their finest octave of detail has
# lost 12 % of its energy; at 2 times it is 43 to 48 dB and 7 %, at 4 nothing. What is trained on is
# then softer than what is evaluated, for a half to a third of the time.
DRAFT_MARGIN = 1.5
MAX_ASPECT = 64  # of a picture that is resized whole
REDUCING_GAP = 4.0  # box-reduce first where the filter still does a 4-fold step: 54 dB or more
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}

# What PIL raises on damaged bytes and EXIF data, by half a million damaged files and by its source.
# Running out of memory is not among them.
DECODE_ERRORS = (*LIBRARY_ERRORS, SyntaxError, Image.DecompressionBombError)
UPRIGHT_FROM = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = {5, 6, 7, 8}  # orientations that exchange width and height


class UnreadableImage(ValueError):
    """The file holds no picture that could be used; the message says why."""


def decode(file: bytes | str | Path, target: int | None = None) -> Image.Image:
    """The first frame of an image file, upright as its EXIF says: RGBA where it has alpha, or RGB.

    file: the encoded bytes, or a path, of which no more is read than the picture takes. 16-bit
    pixels are scaled by 1/257, floating-point ones must lie in [0, 1]; nothing is clipped. Colour
    profiles are not applied.
    target: in pixels; a JPEG may then come at 1/2, 1/4 or 1/8 of its size, decoded so at a fraction
    of the cost, with a shorter side of at least DRAFT_MARGIN x target. One of more than MAX_PIXELS
    always comes so.
    Raises UnreadableImage for a damaged, empty, unknown or missing file, for more pixels than
    PIXEL_LIMITS, and for more than MAX_WHOLE bytes where the decoder would read the file whole.
    """
    with _open(file) as image:
        _load(image, target)
        method, picture = UPRIGHT_FROM.get(_orientation(image)), _to_colours(image)
    del image  # its memory is needed to turn the picture
    return picture if method is None else picture.transpose(method)


def upright_shape(file: bytes | str | Path) -> tuple[int, int]:
    """(height, width) of what `decode` makes of a file, from the header alone.

    A JPEG that comes at a fraction of its size has its own. Raises UnreadableImage where there is
    no such header.
    """
    with _open(file) as image:
        # Of a TIFF, PIL turns the size itself.
        turned = image.format != "TIFF" and _orientation(image) in SIDEWAYS
        return image.size if turned else image.size[::-1]


def holds_picture(path: str | Path) -> bool:
    """Whether a file begins as a picture does. Raises UnreadableImage where it does not."""
    with _open(path) as image:
        return image.format != "TGA"  # which has no mark of its own


@contextmanager
def _open(file: bytes | str | Path) -> Iterator[Image.Image]:
    """The picture, not yet decoded; what goes wrong with it until the end is an UnreadableImage."""
    try:
        with _stream(file) as stream, _identify(stream) as image:
            yield image
    except UnreadableImage:
        raise
    except DECODE_ERRORS as error:
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def _stream(file: bytes | str | Path) -> BinaryIO:
    if isinstance(file, bytes):
        return io.BytesIO(file)
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # reading a pipe or a device may never end
            raise UnreadableImage("cannot be read: it is a directory, a pipe or a device")
        return open(file, "rb")
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror or error}") from error


def _identify(stream: BinaryIO) -> Image.Image:
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    start = stream.read(16)
    if not start:
        raise UnreadableImage("the file is empty")
    if start.startswith(PNG):
        try:
            return Image.open(pixel_chunks(stream), formats=("PNG",))
        except DECODE_ERRORS:  # for the EXIF data perhaps, which is not the picture
            return Image.open(pixel_chunks(stream, with_exif=False), formats=("PNG",))
    allowed, beyond = formats(), ""
    if size > MAX_WHOLE:
        allowed = tuple(name for name in allowed if name not in READ_WHOLE)
        beyond = f", which may have more than {MAX_WHOLE} bytes"
    try:
        return Image.open(stream, formats=allowed)
    except Image.UnidentifiedImageError as error:
        if start.startswith(JPEG):  # for what lies beside its pixels perhaps
            return Image.open(pixel_segments(stream), formats=("JPEG",))
        fix = unread_format(start) or "or of a kind of them that Pillow does not read"
        reason = f"not one of the formats {', '.join(allowed)}{beyond}; {fix}"
        raise UnreadableImage(reason) from error


def _load(image: Image.Image, target: int | None) -> None:
    limit = PIXEL_LIMITS.get(image.format, MAX_PIXELS)
    if image.width * image.height > limit:
        raise UnreadableImage(
            f"{image.width}x{image.height} is more than the {limit} pixels allowed for "
            f"{image.format}; make it smaller"
        )
    if image.format in ("JPEG", "MPO"):
        # Square, so that the shorter side is what counts, whichever way the picture lies.
        side = min(image.size) if target is None else math.ceil(DRAFT_MARGIN * target)
        if image.width * image.height > MAX_PIXELS:
            side = min(side, min(image.size) // 2)
        image.draft(None, (side, side))
    image.load()


def _to_colours(image: Image.Image) -> Image.Image:
    """A copy in mode RGB or RGBA: the decoder's own memory may be larger."""
    if image.mode.startswith(("I", "F")):
        image = _deep_to_grey(image)
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _deep_to_grey(image: Image.Image) -> Image.Image:
    """Pixels of 16 bits (modes I;16* and I) or floating point (F) as L or LA, rounded."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    limit = 1 if image.mode == "F" else 65535
    if not (low >= 0 and high <= limit):  # also where there is a NaN
        raise UnreadableImage(f"pixels from {low} to {high}; mode {image.mode} needs 0 to {limit}")
    grey = np.empty(values.shape, np.uint8)
    for grey_row, row in zip(grey, values, strict=True):  # whole, they would take 8 bytes a pixel
        grey_row[:] = np.rint(row * (255 / limit))
    picture = Image.fromarray(grey)
    if isinstance(image.info.get("transparency"), int):
        visible = Image.fromarray(values != image.info["transparency"]).convert("L")
        picture.putalpha(visible)
    return picture


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) where the EXIF data is damaged."""
    try:
        # Not PNG's own method, which decodes the pixels to look behind them.
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except DECODE_ERRORS:
        return 1


def center_crop_adm(image: Image.Image, resolution: int) -> Image.Image:
    """The centre crop of ADM (Dhariwal & Nichol 2021), which most published rFIDs are measured on.

    Box halvings while the shorter side is at least 2 x resolution, bicubic to a shorter side of
    `resolution`, then the central resolution x resolution pixels. Of a picture longer than
    MAX_ASPECT times its shorter side only the middle is looked at: enlarged whole, a line of pixels
    would fill the memory.
    """
    longest = MAX_ASPECT * min(image.size)
    if max(image.size) > longest:
        width, height = min(image.width, longest), min(image.height, longest)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    while min(image.size) >= 2 * resolution:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = resolution / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - resolution) // 2, (height - resolution) // 2
    return image.crop((left, top, left + resolution, top + resolution))


def random_crop(
    image: Image.Image,
    size: int | tuple[int, int],
    *,
    position: tuple[float, float],
    interpolation: str = "lanczos",
) -> Image.Image:
    """The largest part of this shape, at `position`, resized to `size`: never distorted.

    size: the side of a square, or (height, width). position: (x, y) in [0, 1]; 0 is the left or top
    edge, 1 the right or bottom one. The filter (lanczos or bicubic, antialiased) sees past the
    crop.
    """
    height, width = (size, size) if isinstance(size, int) else size
    part_width = min(image.width, image.height * width / height)
    part_height = min(image.height, image.width * height / width)
    left = min(int(position[0] * (image.width - part_width + 1)), image.width - part_width)
    top = min(int(position[1] * (image.height - part_height + 1)), image.height - part_height)
    return image.resize(
        (width, height),
        FILTERS[interpolation],
        box=(left, top, left + part_width, top + part_height),
        reducing_gap=REDUCING_GAP,
    )


def to_uint8_tensor(image: Image.Image) -> Tensor:
    """A picture -> uint8 [K, H, W] in [0, 255], in memory of its own; of mode RGBa as RGBA."""
    pixels = torch.from_numpy(np.array(image.convert("RGBA") if image.mode == "RGBa" else image))
    return pixels.view(image.height, image.width, -1).permute(2, 0, 1).contiguous()


def normalize(images: Tensor) -> Tensor:
    """images: uint8 [..., K, H, W] in [0, 255] -> float32 in [-1, 1], both ends exact."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """images: float [..., K, H, W] -> uint8 in [0, 255]; [-1, 1] is clamped, scaled and rounded.

    Half to even as in torch.round, never truncated. Undoes `normalize` exactly. The uint8 of a NaN
    is undefined: the caller checks that the images are finite.
    """
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
