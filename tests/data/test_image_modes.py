"""Grey, colour and transparency: nothing is lost on the way, and what is invisible stays so."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from eval.metrics.image import mean_squared_error, ssim
from modules.data.images.images import (
    center_crop_adm,
    decode,
    normalize,
    random_crop,
    to_uint8_tensor,
)
from modules.data.images.samples import SampleMaker
from modules.data.images.synthetic import SyntheticImages
from modules.image_modes import CHANNELS, in_mode, over_views, rgb_views, side_by_side, to_picture

MODES = st.sampled_from(sorted(CHANNELS))
SIDES = st.integers(1, 40)


def pixels(channels: int, least: int = 1) -> st.SearchStrategy[torch.Tensor]:
    """Images [K, H, W] uint8."""
    shapes = st.tuples(st.just(channels), st.integers(least, 40), st.integers(least, 40))
    return shapes.flatmap(lambda shape: arrays(np.uint8, shape)).map(torch.from_numpy)


def with_alpha(colours: torch.Tensor, alpha: int) -> torch.Tensor:
    return torch.cat([colours, torch.full_like(colours[:1], alpha)])


@settings(max_examples=30)
@given(pixels(1), pixels(3))
def test_grey_is_seen_repeated_and_opaque_images_exactly_as_they_are(grey, colours):
    for image in (grey, normalize(grey)):
        (view,) = rgb_views(image)
        assert torch.equal(view, image.repeat(3, 1, 1))
    opaque = with_alpha(colours, 255)
    for image, expected in ((opaque, colours), (normalize(opaque), normalize(colours))):
        assert all(torch.equal(view, expected) for view in rgb_views(image))
    assert all(view is colours for view in rgb_views(colours))


@settings(max_examples=30)
@given(pixels(4))
def test_transparent_images_lie_over_black_and_over_white(image):
    picture = to_picture(image)
    for view, exact, ground in zip(
        rgb_views(image), rgb_views(normalize(image)), ("black", "white"), strict=True
    ):
        behind = Image.new("RGBA", picture.size, ground)
        expected = np.asarray(Image.alpha_composite(behind, picture).convert("RGB")).astype(int)
        assert np.abs(view.permute(1, 2, 0).numpy() - expected).max() <= 1
        assert (normalize(view) - exact).abs().max() <= 1.01 / 255
    assert side_by_side(image).shape == (3, image.shape[1], 2 * image.shape[2])


@settings(max_examples=20)
@given(pixels(3, least=11), st.integers(0, 2**32 - 1))
def test_measures_of_grey_and_opaque_images_are_those_of_rgb(colours, seed):
    generator = torch.Generator().manual_seed(seed)
    others = torch.randint(256, colours.shape, dtype=torch.uint8, generator=generator)
    pair = colours[None], others[None]
    opaque = [with_alpha(image[0], 255)[None] for image in pair]
    grey = [image[:, :1] for image in pair]
    for measure in (mean_squared_error, ssim):
        assert torch.equal(over_views(measure, *pair), measure(*pair))
        assert torch.equal(over_views(measure, *opaque), measure(*pair))
        repeated = [image.repeat(1, 3, 1, 1) for image in grey]
        assert torch.equal(over_views(measure, *grey), measure(*repeated))
    invisible = [with_alpha(image[0], 0)[None] for image in pair]
    assert over_views(mean_squared_error, *invisible) == 0


def test_what_differs_over_white_alone_counts_half():
    clear = torch.zeros(1, 4, 5, 5, dtype=torch.uint8)
    black = clear.clone()
    black[:, 3] = 255
    assert over_views(mean_squared_error, clear, black) == 255**2 / 2


@settings(max_examples=30)
@given(MODES, st.data())
def test_a_picture_survives_the_way_through_tensors_and_wider_modes(mode, data):
    image = data.draw(pixels(CHANNELS[mode]))
    picture = to_picture(image)
    assert picture.mode == mode
    assert torch.equal(to_uint8_tensor(picture), image)
    if mode != "RGBA":
        opaque = in_mode(picture.convert("RGB"), "RGBA")
        assert (to_uint8_tensor(opaque)[3] == 255).all()
        assert torch.equal(to_uint8_tensor(in_mode(opaque.convert("RGBA"), mode)), image)


@settings(max_examples=30)
@given(pixels(4), st.integers(0, 2**32 - 1), st.integers(4, 24), st.booleans())
def test_what_is_invisible_never_bleeds_into_a_crop(image, seed, side, flip):
    """Whatever colours lie under alpha 0, and whatever the crop does with them."""
    image[3] = torch.where(image[3] < 128, 0, image[3])
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(256, image.shape, dtype=torch.uint8, generator=generator)
    noise[3] = image[3]
    other = torch.where(image[3] == 0, noise, image)
    maker = SampleMaker(side, (4, 1, 1), seed, random_flip=flip, image_mode="RGBA")
    for crop in (
        lambda picture: maker._augment(picture, (side, side), seed),
        lambda picture: center_crop_adm(in_mode(picture, "RGBA"), side),
    ):
        crops = [to_uint8_tensor(crop(to_picture(pixels))) for pixels in (image, other)]
        assert crops[0].shape == (4, side, side)
        assert torch.equal(*crops)


@settings(max_examples=30)
@given(pixels(3), st.integers(4, 24), st.sampled_from(["lanczos", "bicubic"]))
def test_crops_of_opaque_pictures_are_those_of_rgb_pictures(image, side, interpolation):
    options = {"position": (0.3, 0.7), "interpolation": interpolation}
    for crop in (
        lambda picture: random_crop(picture, side, **options),
        lambda picture: center_crop_adm(picture, side),
    ):
        opaque, colours = (
            to_uint8_tensor(crop(in_mode(to_picture(image), mode))) for mode in ("RGBA", "RGB")
        )
        assert torch.equal(opaque, with_alpha(colours, 255))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16"])
def test_transparency_is_read_from_every_kind_of_file(mode):
    file, options = io.BytesIO(), {}
    if mode == "I;16":
        picture, options = (
            Image.fromarray(np.array([[900, 65535]], np.uint16)),
            {"transparency": 900},
        )
    else:
        picture = Image.new("RGBA", (2, 1), (80, 80, 80, 255))
        picture.putpixel((0, 0), (200, 200, 200, 0))
        picture = picture.quantize(4) if mode == "P" else picture.convert(mode)
    picture.save(file, "PNG", **options)

    decoded = decode(file.getvalue())

    assert decoded.mode == "RGBA"
    assert np.asarray(decoded)[0, :, 3].tolist() == [0, 255]
    assert in_mode(decoded, "RGB").getpixel((0, 0)) == (255, 255, 255)
    assert in_mode(decoded, "L").getpixel((0, 0)) == 255


def test_drawn_pictures_have_every_kind_of_transparency_over_the_same_scenes():
    cut, whole = SyntheticImages(60, 32, 5, alpha=True), SyntheticImages(60, 32, 5)
    alphas = []
    for index in range(60):
        picture = cut.open(index)
        assert picture.convert("RGB").tobytes() == whole.open(index).tobytes()
        alphas.append(np.asarray(picture)[..., 3])
    opaque = np.mean([(alpha == 255).all() for alpha in alphas])
    shares = [np.mean((alpha > 0) & (alpha < 255)) for alpha in alphas]
    assert 0.1 < opaque < 0.5
    assert np.mean([(alpha == 0).any() for alpha in alphas]) > 0.3
    assert max(shares) > 0.3
