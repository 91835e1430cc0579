"""Generated pictures: the same everywhere and always, each one different, none of them empty."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from modules.data.images.synthetic import SyntheticImages
from modules.data.images.textures import draw_palette, noise, tint, wave


def pixels(source: SyntheticImages, index: int) -> np.ndarray:
    return np.asarray(source.open(index), dtype=np.float32)


@pytest.mark.parametrize("resolution", [16, 37, 64, 256])
def test_pictures_are_rgb_of_exactly_the_resolution(resolution: int) -> None:
    source = SyntheticImages(8, resolution)
    for index in range(8):
        image = source.open(index)
        assert image.mode == "RGB"
        assert image.size == (resolution, resolution)


def test_a_picture_depends_on_seed_and_index_alone() -> None:
    source = SyntheticImages(24, 32, seed=5)
    forward = [source.open(index).tobytes() for index in range(24)]
    np.random.seed(0)
    other = SyntheticImages(10_000, 32, seed=5)
    assert [other.open(index).tobytes() for index in reversed(range(24))] == forward[::-1]


def test_seeds_and_indices_all_give_different_pictures() -> None:
    sources = [SyntheticImages(64, 16, seed) for seed in range(3)]
    seen = {source.open(index).tobytes() for source in sources for index in range(64)}
    assert len(seen) == 3 * 64


def test_every_picture_has_contrast_and_the_set_has_all_hues_and_tones() -> None:
    source = SyntheticImages(200, 32)
    images = np.stack([pixels(source, index) for index in range(200)])
    assert images.std(axis=(1, 2, 3)).min() > 2
    means = images.mean(axis=(1, 2))
    assert means.mean(axis=1).min() < 60
    assert means.mean(axis=1).max() > 190
    assert set(means.argmax(axis=1)) == {0, 1, 2}
    assert 80 < images.mean() < 150


def test_the_same_scene_is_drawn_at_every_resolution() -> None:
    small, large = SyntheticImages(40, 64), SyntheticImages(40, 128)
    for index in range(40):
        halved = pixels(large, index).reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        assert np.corrcoef(halved.ravel(), pixels(small, index).ravel())[0, 1] > 0.75


def test_the_spectrum_falls_off_like_that_of_photographs() -> None:
    source = SyntheticImages(200, 64)
    spectrum = 0
    for index in range(200):
        grey = pixels(source, index).mean(axis=2)
        spectrum = spectrum + np.abs(np.fft.fft2(grey - grey.mean()))
    frequencies = np.arange(1, 32)
    slope = np.polyfit(np.log(frequencies), np.log(spectrum[0, 1:32] + spectrum[1:32, 0]), 1)[0]
    assert -1.5 < slope < -0.8


def test_sources_survive_pickling_and_labels_tell_pictures_apart() -> None:
    source = SyntheticImages(4, 32, seed=3)
    copy = pickle.loads(pickle.dumps(source))
    assert (len(copy), copy.name, copy.label(2)) == (4, "synthetic", source.label(2))
    assert copy.open(2).tobytes() == source.open(2).tobytes()
    labels = {SyntheticImages(3, 16, seed).label(index) for seed in range(2) for index in range(3)}
    assert len(labels) == 6


def test_impossible_sizes_and_places_are_refused() -> None:
    with pytest.raises(ValueError, match="--resolution=15"):
        SyntheticImages(1, 15)
    for index in (-1, 4):
        with pytest.raises(IndexError, match=f"image {index} of 4"):
            SyntheticImages(4, 16).open(index)


def test_noise_has_zero_mean_and_unit_deviation() -> None:
    rng = np.random.RandomState(0)
    fields = np.stack([noise(rng, 64, (4, 4)) for _ in range(100)])
    assert abs(fields.mean()) < 0.1
    assert 0.8 < fields.std() < 1.2


def test_palettes_run_from_dark_to_light_within_range() -> None:
    for seed in range(50):
        palette = draw_palette(np.random.RandomState(seed))
        assert palette.shape == (6, 3)
        assert palette.min() >= 0
        assert palette.max() <= 1
        assert palette[0].mean() < palette[-1].mean()


def test_tint_meets_its_stops_and_mixes_between_them() -> None:
    stops = np.array([[0.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.2, 0.2, 1.0]])
    field = np.array([[0.0, 0.5], [1.0, 0.25]])
    colours = tint(field, stops)
    expected = [[stops[0], stops[1]], [stops[2], stops[1] / 2]]
    np.testing.assert_allclose(colours, expected, atol=3e-3)


def test_waves_too_fine_for_the_pixels_fade_to_grey_instead_of_aliasing() -> None:
    along = np.linspace(-1, 1, 64, dtype=np.float32)[None].repeat(64, 0)
    np.testing.assert_allclose(wave(along * 300), 0.5)
    coarse = wave(along * 10)
    assert coarse.min() < 0.01
    assert coarse.max() > 0.99
