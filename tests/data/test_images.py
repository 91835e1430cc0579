"""Any image file becomes an upright RGB picture or an UnreadableImage, and nothing else."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
import zlib
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from modules.data.images import image_kinds, images
from modules.data.images.images import (
    DRAFT_MARGIN,
    UPRIGHT_FROM,
    UnreadableImage,
    center_crop_adm,
    decode,
    normalize,
    random_crop,
    to_uint8,
    to_uint8_tensor,
    upright_shape,
)
from modules.image_modes import in_mode

ORIENTATION = 0x0112
TURN = Image.Transpose.TRANSPOSE


def encode(image: Image.Image, image_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


center_crop = partial(random_crop, position=(0.5, 0.5))


def in_rgb(file: object, target: int | None = None) -> Image.Image:
    return in_mode(decode(file, target), "RGB")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def smooth_picture(width: int, height: int) -> Image.Image:
    """Three slow waves, one a channel: no symmetry, yet a lossy codec keeps it."""
    x, y = np.meshgrid(np.linspace(0, 2, width), np.linspace(0, 1.5, height))
    waves = [np.sin(x + y), np.cos(x - 2 * y), np.sin(x * y)]
    return Image.fromarray((np.stack(waves, -1) * 70 + 128).astype(np.uint8))


PICTURE = smooth_picture(24, 16)
GREY = PICTURE.convert("L")


@pytest.mark.parametrize(
    ("mode", "image_format", "tolerance"),
    [
        ("RGB", "PNG", 0),
        ("RGBA", "PNG", 0),
        ("RGBX", "TIFF", 0),
        ("RGB", "BMP", 0),
        ("RGB", "PPM", 0),
        ("RGBA", "TGA", 0),
        ("YCbCr", "TIFF", 3),
        ("LAB", "TIFF", 3),
        ("CMYK", "TIFF", 0),
        ("RGB", "WEBP", 30),
        ("RGB", "JPEG", 30),
        ("CMYK", "JPEG", 30),
    ],
)
def test_every_colour_mode_gives_the_colours_that_were_stored(mode, image_format, tolerance):
    decoded = in_rgb(encode(PICTURE.convert(mode), image_format))

    assert decoded.mode == "RGB"
    assert np.abs(pixels(decoded) - pixels(PICTURE)).max() <= tolerance


@pytest.mark.parametrize(
    ("stored", "image_format"),
    [
        (GREY, "PNG"),
        (PICTURE.convert("LA"), "PNG"),
        (GREY.convert("1"), "PNG"),
        (PICTURE.quantize(16), "PNG"),
        (PICTURE.quantize(16), "GIF"),
    ],
)
def test_grey_is_repeated_and_palettes_are_looked_up(stored, image_format):
    decoded = in_rgb(encode(stored, image_format))

    assert decoded.tobytes() == stored.convert("RGB").tobytes()


def test_the_modes_that_no_file_format_stores_are_converted_too():
    indexed = PICTURE.quantize(16)
    palette = Image.merge("PA", (indexed, Image.new("L", PICTURE.size, 255)))
    palette.putpalette(indexed.getpalette())

    for image, expected, tolerance in (
        (PICTURE.convert("RGBA").convert("RGBa"), PICTURE, 8),
        (PICTURE.convert("HSV"), PICTURE, 8),
        (palette, indexed.convert("RGB"), 0),
    ):
        converted = in_mode(images._to_colours(image), "RGB")
        assert np.abs(pixels(converted) - pixels(expected)).max() <= tolerance


def ramp() -> np.ndarray:
    return np.linspace(0, 65535, 24 * 16).round().astype(np.uint16).reshape(16, 24)


BIG_ENDIAN = Image.frombytes("I;16B", (24, 16), ramp().astype(">u2").tobytes())


@pytest.mark.parametrize(
    ("stored", "image_format"),
    [*((Image.fromarray(ramp()), kind) for kind in ("PNG", "TIFF", "PPM")), (BIG_ENDIAN, "TIFF")],
)
def test_sixteen_bits_are_scaled_and_not_clipped(stored, image_format):
    decoded = pixels(in_rgb(encode(stored, image_format)))

    assert (decoded == np.rint(ramp() / 257)[..., None]).all()


def test_floating_point_pixels_from_zero_to_one_are_scaled():
    values = np.linspace(0, 1, 24 * 16, dtype=np.float32).reshape(16, 24)

    decoded = pixels(in_rgb(encode(Image.fromarray(values), "TIFF")))

    assert (decoded[..., 0] == np.rint(values * 255)).all()


@pytest.mark.parametrize(
    "value", [1.5, -0.5, float("nan"), float("inf"), np.int32(70_000), np.int32(-1)]
)
def test_pixels_of_unknown_scale_are_refused(value):
    dtype = np.int32 if isinstance(value, np.int32) else np.float32
    values = np.zeros((4, 4), dtype=dtype)
    values[1, 2] = value

    with pytest.raises(UnreadableImage, match="needs 0 to"):
        in_rgb(encode(Image.fromarray(values), "TIFF"))


def test_transparent_pixels_show_white_and_not_the_colour_hidden_below():
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (200, 0, 100, alpha))

    for image_format in ("PNG", "TIFF"):
        decoded = pixels(in_rgb(encode(image, image_format)))[0]
        assert decoded[0].tolist() == [255, 255, 255]
        assert np.abs(decoded[1] - [227, 127, 177]).max() <= 1
        assert decoded[2].tolist() == [200, 0, 100]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255])])
def test_transparent_palette_entries_show_white(transparency):
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    for x in range(3):
        image.putpixel((x, 0), x)

    decoded = pixels(in_rgb(encode(image, "PNG", transparency=transparency)))

    assert decoded[0].tolist() == [[0, 0, 0], [255, 255, 255], [0, 255, 0]]


def test_a_colour_declared_transparent_shows_white():
    colour = Image.new("RGB", (2, 1), (9, 8, 7))
    colour.putpixel((1, 0), (1, 2, 3))
    grey = Image.new("L", (2, 1), 9)
    deep = Image.fromarray(np.array([[900, 65535]], dtype=np.uint16))

    assert pixels(in_rgb(encode(colour, "PNG", transparency=(9, 8, 7)))).tolist() == [
        [[255, 255, 255], [1, 2, 3]]
    ]
    assert in_rgb(encode(grey, "PNG", transparency=9)).getpixel((0, 0)) == (255, 255, 255)
    assert in_rgb(encode(deep, "PNG", transparency=900)).getpixel((0, 0)) == (255, 255, 255)


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return len(content).to_bytes(4, "big") + kind + content + checksum.to_bytes(4, "big")


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes()[6:]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("beside", "turned"),
    [
        (chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(2_000_000))), False),
        (chunk(b"iTXt", b"x\0\1\0\0\0" + zlib.compress(bytes(90_000_000))), False),
        (chunk(b"tEXt", b"no end"), False),
        (chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(2_000_000))), False),
        (chunk(b"iCCP", b"damaged"), False),
        (chunk(b"pHYs", b""), False),
        (chunk(b"acTL", b"\0"), False),
        (chunk(b"prVt", bytes(9), checksum=7), False),
        (chunk(b"eXIf", exif_of(6)), True),
        (chunk(b"eXIf", exif_of(6), checksum=7), False),
        (chunk(b"eXIf", b"MM\0"), False),
        (chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(2_000_000))), False),
        (chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 99\n" + exif_of(6).hex().encode()), True),
    ],
    ids=lambda value: value[4:8].decode() if isinstance(value, bytes) else str(value),
)
def test_nothing_beside_the_pixels_of_a_png_spoils_them(beside, turned, interlaced, after):
    file = encode(PICTURE, "PNG") if not interlaced else INTERLACED
    place = file.index(b"IEND" if after else b"IDAT") - 4

    file = file[:place] + beside + file[place:] + b"trailing bytes"

    expected = PICTURE.transpose(Image.Transpose.ROTATE_270) if turned else PICTURE
    assert in_rgb(file).tobytes() == expected.tobytes()
    assert upright_shape(file) == expected.size[::-1]


def interlace(picture: Image.Image) -> bytes:
    """An Adam7 PNG, which PIL does not write."""
    values, rows = np.asarray(picture), []
    for top, down, left, right in ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4),
                                   (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)):  # fmt: skip
        rows += [b"\0" + row.tobytes() for row in values[top::down, left::right]]
    size = picture.width.to_bytes(4, "big") + picture.height.to_bytes(4, "big")
    header = chunk(b"IHDR", size + bytes([8, 2, 0, 0, 1]))
    data = zlib.compress(b"".join(rows))
    halves = chunk(b"IDAT", data[:50]) + chunk(b"IDAT", data[50:])
    return b"\x89PNG\r\n\x1a\n" + header + halves + chunk(b"IEND", b"")


INTERLACED = interlace(PICTURE)


@pytest.mark.parametrize("whole", [True, False], ids=["profile whole", "profile cut"])
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
@pytest.mark.parametrize(
    "beside",
    [(0xE0, b"JFIF"), (0xE0, b""), (0xEE, b"Adobe"), (0xE2, b"ICC_PROFILE\0"), (0xFE, b"note")],
    ids=lambda segment: f"{segment[0]:x} {len(segment[1])}",
)
def test_a_segment_cut_short_beside_the_pixels_of_a_jpeg_spoils_nothing(beside, mode, whole):
    """Its orientation and what its colours are count all the same."""
    marker, content = beside
    file = encode(PICTURE.convert(mode), "JPEG", exif=b"Exif\0\0" + exif_of(6))
    expected = in_rgb(file)

    segments = [(marker, content), (0xE2, b"ICC_PROFILE\0\1\1" + bytes(9) if whole else b"ICC")]
    added = b"".join(
        bytes([0xFF, kind]) + (len(inside) + 2).to_bytes(2, "big") + inside
        for kind, inside in segments
    )
    file = file[:2] + added + file[2:]

    assert in_rgb(file).tobytes() == expected.tobytes()
    assert upright_shape(file) == expected.size[::-1] == PICTURE.size


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "AVIF"])
def test_a_file_far_larger_than_its_picture_is_not_read_whole(image_format, tmp_path):
    (tmp_path / "picture").write_bytes(encode(PICTURE, image_format))
    os.truncate(tmp_path / "picture", 2**42)

    if image_format in images.READ_WHOLE:
        with pytest.raises(UnreadableImage, match="may have more than 268435456 bytes"):
            in_rgb(tmp_path / "picture")
    else:
        assert in_rgb(tmp_path / "picture").size == PICTURE.size


def test_each_format_has_a_limit_of_pixels_and_large_jpegs_come_at_half_their_size(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 400)
    monkeypatch.setattr(images, "PIXEL_LIMITS", {"JPEG": 800, "WEBP": 200})

    for image_format, width, size in (
        ("JPEG", 20, (20, 20)), ("JPEG", 40, (20, 10)), ("JPEG", 50, None),
        ("PNG", 20, (20, 20)), ("PNG", 40, None), ("WEBP", 10, (10, 20)), ("WEBP", 20, None),
    ):  # fmt: skip
        file = encode(smooth_picture(width, 20), image_format)
        if size is not None:
            assert in_rgb(file).size == size
            continue
        with pytest.raises(UnreadableImage, match=f"{width}x20 is more than the .* pixels"):
            in_rgb(file)


@pytest.mark.parametrize("head", [b"\0\0\0\x18ftypheic", b"\xff\x0a", b"\0\0\0\x0cJXL \r\n"])
def test_a_picture_of_a_kind_that_is_not_read_names_what_reads_it(head, monkeypatch):
    monkeypatch.setattr(image_kinds, "formats", lambda: ("JPEG",))
    image_kinds.suffixes.cache_clear()
    image_kinds.remedy.cache_clear()
    with pytest.raises(UnreadableImage, match="; pip install pillow-"):
        in_rgb(head + bytes(100))
    image_kinds.suffixes.cache_clear()
    image_kinds.remedy.cache_clear()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_every_exif_orientation_is_turned_upright(orientation, image_format):
    inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    method = inverse.get(orientation, UPRIGHT_FROM.get(orientation))
    stored = PICTURE if method is None else PICTURE.transpose(method)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation

    decoded = in_rgb(encode(stored, image_format, exif=exif))

    assert decoded.size == PICTURE.size
    assert np.abs(pixels(decoded) - pixels(PICTURE)).mean() < 8


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("damage", [b"Exif\x00\x00garbage", b"Exif\x00\x00II*\x00\xff\xff\xff\xff"])
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_damaged_exif_leaves_the_picture_upright(damage, image_format):
    decoded = in_rgb(encode(PICTURE, image_format, exif=damage))

    assert np.abs(pixels(decoded) - pixels(PICTURE)).mean() < 8


def test_an_orientation_that_does_not_exist_leaves_the_picture_upright():
    exif = Image.Exif()
    exif[ORIENTATION] = 77

    assert in_rgb(encode(PICTURE, "PNG", exif=exif)).size == PICTURE.size


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(image_format):
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")

    file = encode(first, image_format, save_all=True, append_images=[second])

    red, _, blue = in_rgb(file).getpixel((4, 4))
    assert red > 240
    assert blue < 15


def test_a_path_and_its_bytes_give_the_same_picture(tmp_path):
    path = tmp_path / "picture.png"
    PICTURE.save(path)

    for file in (path, str(path), path.read_bytes()):
        assert in_rgb(file).tobytes() == PICTURE.tobytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"This is not an image, it is a sentence.", "not one of the formats"),
        (encode(PICTURE, "JPEG")[:-200], "(?i)truncated"),
        (encode(PICTURE, "PNG")[:-100], "truncated"),
        (encode(PICTURE, "WEBP")[:-20], "could not create decoder"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not one of the formats"),
    ],
)
def test_files_without_a_whole_picture_are_refused_with_the_reason(content, reason):
    with pytest.raises(UnreadableImage, match=reason):
        in_rgb(content)


def test_a_file_that_is_not_there_is_refused_with_the_reason(tmp_path):
    with pytest.raises(UnreadableImage, match="No such file"):
        in_rgb(tmp_path / "missing.png")
    with pytest.raises(UnreadableImage, match="directory"):
        in_rgb(tmp_path)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be large; its pixels are never needed."""
    content = bytearray(encode(Image.new("1", (1, 1)), "PNG"))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [12_000, 30_000])
def test_decompression_bombs_are_refused_before_they_are_decoded(side):
    with pytest.raises(UnreadableImage, match="pixels"):
        in_rgb(bomb(side, side))


def fuzz_seeds() -> list[bytes]:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    transparent = PICTURE.copy()
    transparent.putalpha(GREY)
    return [
        encode(PICTURE, "JPEG", exif=exif),
        encode(PICTURE, "JPEG", progressive=True),
        encode(PICTURE.convert("CMYK"), "JPEG"),
        encode(transparent, "PNG", exif=exif),
        encode(PICTURE.quantize(8), "PNG", transparency=2),
        encode(Image.fromarray(ramp()), "PNG"),
        encode(transparent, "WEBP", exif=exif),
        encode(PICTURE, "WEBP", lossless=True),
        encode(PICTURE.quantize(8), "GIF"),
        encode(PICTURE, "TIFF", compression="tiff_lzw"),
    ]


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(fuzz_seeds()),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
    st.booleans(),
)
def test_damaged_files_decode_or_are_refused_and_do_nothing_else(seed, writes, length, cut):
    content = bytearray(seed)
    for place, value in writes:
        content[int(place**2 * len(content))] = value  # mostly near the start, where headers are
    if cut:
        content = content[: int(length * len(content))]

    with warnings.catch_warnings(), contextlib.suppress(UnreadableImage):
        warnings.simplefilter("ignore")
        assert in_rgb(bytes(content), target=4).mode == "RGB"


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("target", "shrunk"), [(None, 1), (300, 1), (100, 2), (64, 4), (24, 8)])
def test_a_target_reduces_jpegs_but_never_below_the_margin(target, shrunk, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture = smooth_picture(640, 400)

    decoded = in_rgb(encode(picture, "JPEG", exif=exif), target)

    assert sorted(decoded.size) == [400 // shrunk, 640 // shrunk]
    assert (decoded.width < decoded.height) == (orientation == 6)
    assert shrunk == 1 or min(decoded.size) >= DRAFT_MARGIN * target


def test_a_reduced_decode_gives_nearly_the_same_crop():
    noise = np.random.default_rng(0).normal(0, 12, (400, 640, 1))
    textured = np.clip(pixels(smooth_picture(640, 400)) + noise, 0, 255).astype(np.uint8)
    file = encode(Image.fromarray(textured), "JPEG", quality=92)

    whole = pixels(center_crop(in_rgb(file), 64))
    reduced = pixels(center_crop(in_rgb(file, target=64), 64))

    assert in_rgb(file, target=64).width == 160
    assert 10 * np.log10(255**2 / np.square(whole - reduced).mean()) > 44


def test_other_formats_are_never_reduced():
    assert in_rgb(encode(smooth_picture(640, 400), "PNG"), target=8).size == (640, 400)


def box_halved(values: np.ndarray) -> np.ndarray:
    """The mean of each 2 x 2 block."""
    height, width, channels = values.shape
    return values.reshape(height // 2, 2, width // 2, 2, channels).mean((1, 3))


def test_the_adm_crop_is_box_halvings_then_bicubic_then_the_centre():
    noise = np.random.default_rng(0).integers(-30, 30, (176, 320, 1))
    picture = Image.fromarray((pixels(smooth_picture(320, 176)) + noise).astype(np.uint8))

    halved_twice = box_halved(box_halved(pixels(picture))).round().astype(np.uint8)
    expected, unlike = (
        pixels(start.resize((73, 40), Image.Resampling.BICUBIC))[:, 16:56]
        for start in (Image.fromarray(halved_twice), picture)
    )
    crop = pixels(center_crop_adm(picture, 40))

    # PIL rounds half up after every pass, which brightens the whole by one level.
    assert np.abs(crop - expected).max() <= 3
    assert (crop - expected).std() < 0.8
    assert (crop - unlike).std() > 1.5


def test_the_adm_crop_halves_at_exactly_twice_the_resolution_and_not_below():
    halved, whole = smooth_picture(80, 80), smooth_picture(79, 79)

    box = halved.resize((40, 40), Image.Resampling.BOX)
    bicubic = whole.resize((40, 40), Image.Resampling.BICUBIC)

    assert center_crop_adm(halved, 40).tobytes() == box.tobytes()
    assert center_crop_adm(whole, 40).tobytes() == bicubic.tobytes()


def test_the_adm_crop_takes_the_middle():
    stripes = np.zeros((8, 12, 3), dtype=np.uint8)
    stripes[:, 2:10] = 200

    assert (pixels(center_crop_adm(Image.fromarray(stripes), 8)) == 200).all()


@settings(max_examples=60)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 40),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["lanczos", "bicubic"]),
)
def test_crops_have_the_asked_size_whatever_the_picture(
    width, height, resolution, x, y, interpolation
):
    picture = smooth_picture(width, height)

    for crop in (
        random_crop(picture, resolution, position=(x, y), interpolation=interpolation),
        center_crop(picture, resolution, interpolation=interpolation),
        center_crop_adm(picture, resolution),
    ):
        assert crop.size == (resolution, resolution)


@pytest.mark.parametrize(
    ("position", "left"), [((0, 0.5), 0), ((1, 0.5), 20), ((0.5, 0.5), 10), ((0.99, 0), 20)]
)
def test_a_crop_of_a_picture_of_the_right_height_copies_its_pixels(position, left):
    picture = smooth_picture(36, 16)

    crop = random_crop(picture, 16, position=position)
    turned = random_crop(picture.transpose(TURN), 16, position=position[::-1])

    assert (pixels(crop) == pixels(picture)[:, left : left + 16]).all()
    assert turned.transpose(TURN).tobytes() == crop.tobytes()


def test_cropping_keeps_the_aspect_ratio_and_equals_resizing_first():
    picture = smooth_picture(90, 60)
    resized = picture.resize((30, 20), Image.Resampling.LANCZOS)

    crop = random_crop(picture, 20, position=(1.0, 0.0))

    assert np.abs(pixels(crop) - pixels(resized)[:, 10:]).max() <= 1


def test_shrinking_in_two_steps_for_speed_is_invisible():
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)

    exact = pixels(picture.resize((64, 64), Image.Resampling.LANCZOS))

    assert np.abs(pixels(center_crop(picture, 64)) - exact).max() <= 4


def test_shrinking_averages_instead_of_skipping_pixels():
    checkerboard = np.indices((64, 64)).sum(0) % 2 * 255
    picture = Image.fromarray(checkerboard.astype(np.uint8)).convert("RGB")

    for interpolation in ("lanczos", "bicubic"):
        crop = pixels(center_crop(picture, 16, interpolation=interpolation))
        assert np.abs(crop[2:-2, 2:-2] - 127).max() <= 3


def test_a_tensor_is_channels_first_with_memory_of_its_own():
    tensor = to_uint8_tensor(PICTURE)

    assert tensor.dtype == torch.uint8
    assert tensor.shape == (3, 16, 24)
    assert tensor.is_contiguous()
    assert tensor[:, 3, 5].tolist() == list(PICTURE.getpixel((5, 3)))
    tensor.zero_()
    assert PICTURE.getpixel((5, 3)) != (0, 0, 0)


def test_all_pixel_values_survive_normalization_and_back():
    values = torch.arange(256, dtype=torch.uint8)

    normalized = normalize(values)

    assert normalized.dtype == torch.float32
    assert normalized[0] == -1
    assert normalized[255] == 1
    assert torch.equal(to_uint8(normalized), values)
    assert torch.equal(to_uint8(normalized.double()), values)


def test_conversion_to_bytes_clamps_and_rounds_to_the_nearest():
    values = torch.tensor([-7.0, -1.0, 1.0, 7.0, 100.6 / 127.5 - 1, 100.4 / 127.5 - 1, 0.0])

    # 0 lies between 127 and 128: to the even one.
    assert to_uint8(values).tolist() == [0, 0, 255, 255, 101, 100, 128]


def test_conversion_to_bytes_of_bfloat16_rounds_in_float32():
    values = torch.linspace(-1, 1, 333).bfloat16()

    assert torch.equal(to_uint8(values), to_uint8(values.float()))
