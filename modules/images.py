"""From the bytes of any image file to an upright RGB picture, its crops, and tensors."""

from __future__ import annotations

import io
import math
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

MAX_PIXELS = 2**27  # 134 million, 0.5 GB decoded: larger files are refused as decompression bombs
# A draft is at least this much larger than the target: on most photographs 39 dB or more from a
# full decode, about as near as bicubic is to Lanczos, in a third of the time (1024 x 768 to 256).
DRAFT_MARGIN = 1.5
MAX_ASPECT = 64  # of a picture that is resized whole
REDUCING_GAP = 4.0  # box-reduce first where the filter still does a 4-fold step: 54 dB or more
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}

# Formats of photographs and of image data sets. The rest of what PIL opens stays closed: EPS, for
# one, would hand a downloaded file to Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
# What PIL's decoders and its reading of EXIF raise on damaged bytes: six of these in half a million
# damaged files, the others by PIL's source. Running out of memory is not among them.
DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, KeyError, IndexError,
    TypeError, AttributeError, AssertionError, ArithmeticError, RuntimeError,
    Image.DecompressionBombError,
)  # fmt: skip
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


def decode_rgb(file: bytes | str | Path, target: int | None = None) -> Image.Image:
    """The first frame of an image file: mode RGB, upright as its EXIF says, alpha over white.

    file: the encoded bytes, or a path. 16-bit pixels are scaled by 1/257, floating-point ones must
    lie in [0, 1]; nothing is clipped. Colour profiles are not applied.
    target: in pixels; a JPEG may then come at 1/2, 1/4 or 1/8 of its size, decoded so at a fraction
    of the cost, with a shorter side of at least DRAFT_MARGIN x target.
    Raises UnreadableImage for a damaged, empty, unknown or missing file and for one of more than
    MAX_PIXELS.
    """
    try:
        content = file if isinstance(file, bytes) else _read(Path(file))
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror or error}") from error
    if not content:
        raise UnreadableImage("the file is empty")
    with _as_unreadable(), Image.open(io.BytesIO(content), formats=_formats()) as image:
        picture = _load(image, target)
        return _upright(picture, _orientation(image))  # PNG has its EXIF after the pixels


def upright_shape(file: bytes | str | Path) -> tuple[int, int]:
    """(height, width) of what `decode_rgb` makes of a file, from the header alone.

    A PNG whose EXIF data follows its pixels is taken as upright: to see it, all must be decoded.
    Raises UnreadableImage where there is no such header.
    """
    with _as_unreadable(), Image.open(_header(file), formats=_formats()) as image:
        unseen = image.format == "PNG" and not any("exif" in key for key in image.info)
        if image.format == "TIFF" or unseen or _orientation(image) not in SIDEWAYS:
            return image.size[::-1]  # of a TIFF, PIL turns the size itself
        return image.size


@contextmanager
def _as_unreadable() -> Iterator[None]:
    try:
        yield
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(f"not one of the formats {', '.join(_formats())}") from error
    except DECODE_ERRORS as error:
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def _read(path: Path) -> bytes:
    _require_file(path)
    return path.read_bytes()


def _header(file: bytes | str | Path) -> io.BytesIO | Path:
    if isinstance(file, bytes):
        return io.BytesIO(file)
    _require_file(Path(file))
    return Path(file)  # of which PIL reads as much as it needs


def _require_file(path: Path) -> None:
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe or a device may never end
        raise UnreadableImage("cannot be read: it is a directory, a pipe or a device")


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _load(image: Image.Image, target: int | None) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImage(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
    if target is not None and image.format in ("JPEG", "MPO"):
        # Square, so that the shorter side is what counts, whichever way the picture lies.
        side = math.ceil(DRAFT_MARGIN * target)
        image.draft(None, (side, side))
    image.load()
    return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _deep_to_grey(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _deep_to_grey(image: Image.Image) -> Image.Image:
    """Pixels of 16 bits (modes I;16* and I) or floating point (F) as mode L, rounded."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    limit = 1 if image.mode == "F" else 65535
    if not (low >= 0 and high <= limit):  # also where there is a NaN
        raise UnreadableImage(f"pixels from {low} to {high}; mode {image.mode} needs 0 to {limit}")
    grey = np.rint(values * (255 / limit)).astype(np.uint8)
    if isinstance(image.info.get("transparency"), int):
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded image; 1 (upright) where the EXIF data is damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except DECODE_ERRORS:
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    method = UPRIGHT_FROM.get(orientation)
    return image if method is None else image.transpose(method)


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


def center_crop(
    image: Image.Image, size: int | tuple[int, int], *, interpolation: str = "lanczos"
) -> Image.Image:
    """As `random_crop`, from the middle."""
    return random_crop(image, size, position=(0.5, 0.5), interpolation=interpolation)


def flip_horizontal(image: Image.Image) -> Image.Image:
    """Left and right exchanged."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def to_uint8_tensor(image: Image.Image) -> Tensor:
    """images: an RGB picture -> uint8 [3, H, W] in [0, 255], in memory of its own."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def normalize(images: Tensor) -> Tensor:
    """images: uint8 [..., 3, H, W] in [0, 255] -> float32 in [-1, 1], both ends exact."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """images: float [..., 3, H, W] -> uint8 in [0, 255]; [-1, 1] is clamped, scaled and rounded.

    Half to even as in torch.round, never truncated. Undoes `normalize` exactly. The uint8 of a NaN
    is undefined: the caller checks that the images are finite.
    """
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
