"""Measures of artefacts: nothing for what is perfect, and more for more of each."""

from __future__ import annotations

import pytest
import torch
from eval_fixtures import TensorImages, noisy, photographs, tiny_vae
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d

from eval.metrics.artefacts import border_error, flat_images, grid_energy, halo
from eval.metrics.columns import METRICS
from eval.protocol.codecs import VAECodec, open_codec
from eval.protocol.evaluate import evaluate_reconstruction

quick = settings(max_examples=20)


def step_edge(low: int = 60, high: int = 180) -> torch.Tensor:
    images = torch.full((1, 3, 32, 32), low, dtype=torch.uint8)
    images[..., 16:] = high
    return images


def test_what_is_perfect_has_no_artefact():
    for images in (photographs(2, 64), step_edge(), flat_images(4)):
        assert border_error(images, images).abs().max() == 0
        assert halo(images, images).max() == 0
    assert grid_energy(flat_images(8).float(), 8, 8).max() == 0


def test_flat_images_are_nine_colours_of_whole_periods():
    images = flat_images(4)
    assert images.shape == (9, 3, 64, 64)
    assert (images.amax(dim=(2, 3)) == images.amin(dim=(2, 3))).all()
    assert len(images[:, :, 0, 0].unique(dim=0)) == 9


@quick
@given(factor=st.sampled_from([2, 4, 8, 16]), seed=st.integers(0, 99), levels=st.floats(0.01, 30))
def test_the_energy_of_a_grid_is_its_own_whatever_the_slope_and_the_border(factor, seed, levels):
    generator = torch.Generator().manual_seed(seed)
    pattern = torch.randn(3, factor, factor, generator=generator)
    pattern -= pattern.mean(dim=(1, 2), keepdim=True)
    pattern *= levels / pattern.square().mean().sqrt()
    side = 16 * factor
    values = pattern.repeat(1, 16, 16) + torch.linspace(0, 200, side)
    values[:, : 2 * factor] = 255.0
    assert grid_energy(values[None], factor, factor).item() == pytest.approx(levels, rel=1e-2)


@quick
@given(st.sampled_from([4, 8, 16]), st.sampled_from([2, 4, 8, 16]), st.sampled_from([2, 4, 8, 16]))
def test_a_grid_is_part_of_the_multiples_of_its_period_and_of_no_other(factor, period, looked_at):
    period, looked_at = min(period, factor), min(looked_at, factor)
    stripes = torch.zeros(16 * factor)
    stripes[::period], stripes[period // 2 :: period] = 1.0, -1.0
    found = grid_energy(stripes.expand(1, 3, 16 * factor, -1), factor, looked_at).item()
    whole = (2 / period) ** 0.5
    assert found == pytest.approx(whole if looked_at % period == 0 else 0.0, abs=1e-6)


def test_a_halo_grows_with_the_overshoot_and_a_blurred_edge_has_none():
    images, found = step_edge(), []
    for overshoot in (0, 5, 10, 40):
        output = images.clone()
        output[..., 16:18] += overshoot
        output[..., 14:16] -= overshoot
        found.append(halo(images, output).item())
    assert found == pytest.approx([0, 5 * 4 / 6, 10 * 4 / 6, 40 * 4 / 6])  # of 6 columns in reach
    blurred = avg_pool2d(images.float(), (1, 5), 1, (0, 2), count_include_pad=False)
    assert halo(images, blurred.round().to(torch.uint8)).item() == 0
    assert halo(step_edge(100, 140), step_edge(50, 190)).item() == 0  # no strong edge, no halo


def test_the_border_is_compared_with_the_rest():
    images = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    even = noisy(images, 12.0)
    assert border_error(images, even).item() == pytest.approx(0, abs=0.3)
    found = []
    for levels in (24.0, 48.0):
        output = noisy(images, levels)
        output[..., 8:-8, 8:-8] = even[..., 8:-8, 8:-8]
        found.append(border_error(images, output).item())
    assert found == pytest.approx([6.02, 12.04], abs=0.4)  # twice and four times the deviation
    output = images.clone()
    output[..., 8:-8, 8:-8] = even[..., 8:-8, 8:-8]
    assert border_error(images, output).item() < -20


class WithGrid(VAECodec):
    """Adds vertical stripes of 2 pixels to what the autoencoder makes."""

    def __init__(self, vae, levels):
        super().__init__(vae)
        self.levels = levels

    def reconstruct(self, images, indices, protocol):
        output = super().reconstruct(images, indices, protocol)
        output.values[..., ::2] += self.levels / 127.5
        output.values[..., 1::2] -= self.levels / 127.5
        return output


def test_the_group_measures_models_and_baselines_without_data_for_the_grids():
    vae = tiny_vae()
    models = {name: WithGrid(vae, levels) for name, levels in (("a", 0.0), ("b", 3.0), ("c", 9.0))}
    models["identity"] = open_codec("identity")
    images = TensorImages(photographs(3))
    found = evaluate_reconstruction(models, images, ["artefacts"], batch_size=2, progress=False)
    summaries = {label: evaluation.summary() for label, evaluation in found.items()}
    assert all(set(METRICS["artefacts"]) <= set(summary) for summary in summaries.values())
    assert all(summaries["identity"][key] == 0 for key in METRICS["artefacts"])
    for key in METRICS["artefacts"][2:5]:
        grids = [summaries[name][key] for name in "abc"]
        assert grids == sorted(grids)
        assert grids[0] < grids[1] < grids[2]
    assert grids[2] == pytest.approx(9.0, abs=grids[0])
