"""What `python -m eval diffusability` measures, each part against what is known of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from eval_fixtures import TensorImages, photographs, random_images, tiny_vae
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from eval.__main__ import main
from eval.diffusability import interpolation
from eval.diffusability.denoiser import Denoiser, flow_loss, sampled, train_denoiser
from eval.diffusability.denoiser import validation_loss as loss_of
from eval.diffusability.gap import HALF, MIRROR, TURN, GapMeter, changes
from eval.diffusability.interpolation import half_way, interpolated, nearest
from eval.diffusability.latents_on_disk import Scale, StoredLatents, store_latents
from eval.metrics.fid import FeatureStatistics, extract_features, frechet_distance
from eval.metrics.random_features import RandomFeatures
from eval.protocol.codecs import VAECodec, quantize
from eval.report.over_seeds import OverSeeds
from modules.data.images.images import normalize
from modules.errors import ArgumentError
from modules.models.latents import LatentAccumulator

CPU = torch.device("cpu")


def stored(values: Tensor, digests: Sequence[int] | None = None) -> StoredLatents:
    found = LatentAccumulator(values.shape[1])
    found.update(values, torch.full_like(values, -10.0))
    digests = range(len(values)) if digests is None else digests
    return StoredLatents(values, torch.tensor(list(digests)), found.result())


class Averages:
    """An autoencoder of 4x4 averages: for mirroring and turns equivariant, to the last digit."""

    latent_channels = 3

    def __init__(self, tilt: float = 0.0) -> None:
        self.vae = SimpleNamespace(decode=lambda z: SimpleNamespace(sample=self._decode(z)))
        self.tilt = tilt  # what the decoder adds from left to right

    def encode(self, images: Tensor) -> SimpleNamespace:
        mean = F.avg_pool2d(normalize(images), 4)
        return SimpleNamespace(mean=mean, logvar=torch.full_like(mean, -10.0))

    def _decode(self, latents: Tensor) -> Tensor:
        pictures = F.interpolate(latents, scale_factor=4, mode="nearest")
        return pictures + self.tilt * torch.linspace(-1, 1, pictures.shape[-1])


def gaps(codec: Averages, images: Tensor) -> tuple:
    meter = GapMeter(codec)
    for part in images.split(3):
        meter.add(part, codec.encode(part).mean)
    return meter.result()


def test_an_equivariant_autoencoder_has_no_gap_and_one_that_is_not_has():
    plain, found = gaps(Averages(), photographs(5))
    assert [found[name].decibels for name in (TURN, MIRROR)] == pytest.approx([0, 0], abs=0.01)
    assert found[TURN].native == pytest.approx(plain, abs=0.01)
    assert abs(found[HALF].decibels) < 1.5  # averages of what is resampled are not the resampled
    _, tilted = gaps(Averages(0.3), photographs(5))
    # It errs on both alike.
    assert tilted[MIRROR].decibels == pytest.approx(0, abs=0.01)
    assert tilted[MIRROR].native < found[MIRROR].native - 3


def test_the_gap_is_what_changing_the_latents_costs():
    class Compensated(Averages):
        """Encodes the tilt away, and its decoder restores it: exact, but not equivariant."""

        def encode(self, images: Tensor) -> SimpleNamespace:
            ramp = self.tilt * torch.linspace(-1, 1, images.shape[-1])
            mean = F.avg_pool2d(normalize(images) - ramp, 4)
            return SimpleNamespace(mean=mean, logvar=torch.full_like(mean, -10.0))

    flat = torch.full((2, 3, 32, 32), 128, dtype=torch.uint8)
    plain, found = gaps(Compensated(0.3), flat)
    assert plain > 30
    assert found[MIRROR].native == pytest.approx(plain)
    assert found[MIRROR].decibels > 10
    assert found[TURN].decibels > 10


@given(st.integers(0, 1000), st.floats(-0.99, 0.999))
def test_half_way_is_on_the_arc_between_the_two(seed, cosine):
    a, b = torch.randn(2, 6, 3, 2, 2, generator=torch.Generator().manual_seed(seed)).double()
    a, b = (x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for x in (a, b))
    b = b - (a * b).sum(dim=(1, 2, 3), keepdim=True) * a  # at right angles, then at the angle asked
    b = b / b.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    b = cosine * a + (1 - cosine**2) ** 0.5 * b
    middle = half_way(a, b)
    torch.testing.assert_close(middle.flatten(1).norm(dim=1), torch.ones(6).double())
    angles = [(middle * x).sum(dim=(1, 2, 3)) for x in (a, b)]
    torch.testing.assert_close(*angles)
    torch.testing.assert_close(half_way(2 * a, 2 * a), 2 * a)


def test_neighbours_are_those_of_the_whole_reference_and_never_the_image_itself(monkeypatch):
    monkeypatch.setattr(interpolation, "CHUNK", 7)
    values = torch.randn(60, 2, 3, 3)
    reference, queries = stored(values), torch.cat([values[:4], torch.randn(4, 2, 3, 3)])
    digests = torch.tensor([0, 1, 2, 3, -1, -2, -3, -4])
    found, cosine = nearest(queries, digests, reference)
    every = F.cosine_similarity(queries[:, None].flatten(2), values[None].flatten(2), dim=2)
    for row in range(4):
        every[row, row] = -torch.inf
    best, order = every.topk(10)
    torch.testing.assert_close(cosine, best)
    assert torch.equal(found, order)


def test_neighbours_are_drawn_by_distance_and_the_draw_belongs_to_the_seed(monkeypatch):
    monkeypatch.setattr(interpolation, "QUERIES", 3)
    far, near = torch.randn(30, 2, 2, 2) * 100, torch.randn(8, 2, 2, 2) * 10
    # The nearest neighbour lies on the query, under another digest; all others are far away.
    reference = stored(torch.cat([far, near]), range(100, 138))
    for made, own in zip(interpolated(stored(near), reference, 0), near.split(3), strict=True):
        torch.testing.assert_close(made, own)
    alike = stored(near[:1] / 10 * torch.linspace(0.5, 1.5, 12).view(-1, 1, 1, 1), range(50, 62))
    draws = [torch.cat(list(interpolated(stored(near / 10), alike, seed))) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_latents_lie_in_a_file_and_are_scaled_there(tmp_path):
    codec, images = VAECodec(tiny_vae()), photographs(7)
    with torch.no_grad():
        seen = []
        found = store_latents(
            codec, TensorImages(images, damaged=[2]), tmp_path / "z", batch_size=3,
            watch=lambda pictures, latents: seen.append(len(pictures)), progress=False,
        )  # fmt: skip
        expected = codec.encode(images[[0, 1, 3, 4, 5, 6]]).mean
        torch.testing.assert_close(found.values, expected)
        assert sum(seen) == len(found.digests.unique()) == 6
        scale = Scale.of(found.statistics)
        scaled = found.scaled(scale).values
        assert torch.equal(torch.from_file(str(tmp_path / "z"), size=scaled.numel()),
                           scaled.flatten())  # fmt: skip
        std, mean = torch.std_mean(scaled, dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(std, torch.ones(4), rtol=1e-4, atol=0)
        torch.testing.assert_close(mean, torch.zeros(4), rtol=0, atol=1e-4)
        own = quantize(codec.vae.decode(expected).sample, "nearest")
        assert (scale.decode(codec, scaled, CPU).int() - own).abs().max() <= 1


def test_the_denoiser_is_ignorant_at_first_then_learns_and_is_the_same_for_a_seed():
    latents = torch.randn(64, 1, 4, 4).sign() * torch.ones(64, 3, 4, 4)  # channels all say the same
    noise, time = torch.randn(64, 3, 4, 4), torch.rand(64)
    assert flow_loss(Denoiser(3), latents, noise, time).item() == pytest.approx(2.0, abs=0.2)
    assert flow_loss(lambda mixed, time: noise - latents, latents, noise, time).item() == 0
    state = torch.get_rng_state()
    trained = [train_denoiser(latents, 60, seed, CPU) for seed in (0, 0, 1)]
    losses = [loss_of(network, latents, CPU) for network in trained]
    assert torch.equal(torch.get_rng_state(), state)
    assert max(losses) < 1.5
    assert losses[0] == losses[1] != losses[2]


def test_samples_follow_the_flow_to_its_end():
    aim = torch.randn(2, 3, 3)

    def straight(latents: Tensor, time: Tensor) -> Tensor:
        return (latents - aim) / time.view(-1, 1, 1, 1)

    found = list(sampled(straight, 40, (2, 3, 3), 0, CPU))
    assert [len(part) for part in found] == [32, 8]
    torch.testing.assert_close(torch.cat(found), aim.expand(40, -1, -1, -1), rtol=0, atol=1e-4)


def test_random_features_are_the_same_always_and_tell_kinds_of_pictures_apart():
    def statistics(images: Tensor) -> dict:
        features = extract_features(RandomFeatures(), images)
        found = FeatureStatistics(features.shape[1])
        found.update(features)
        return found.result()

    photos, others, noise = (statistics(images) for images in (
        photographs(40, seed=0), photographs(40, seed=1), random_images(40)))  # fmt: skip
    assert frechet_distance(photos, photos) == pytest.approx(0, abs=1e-3)
    assert frechet_distance(photos, noise) > 2 * frechet_distance(photos, others) > 0


@pytest.fixture
def model(tmp_path: Path) -> str:
    tiny_vae().save_pretrained(tmp_path / "mine")
    return str(tmp_path / "mine")


COMMAND = [
    "diffusability", "--data", "synthetic", "--resolution", "32", "--no_progress",
    "--num_images", "12", "--denoiser_steps", "2", "--features", "random", "--model",
]  # fmt: skip


def test_the_command_says_the_same_in_table_json_and_page(model, tmp_path, capsys):
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "html")}
    argv = [*COMMAND, model, model, "--seeds", "2", "--reference", "synthetic",
            "--num_reference_images", "14", "--json", str(files["json"]),
            "--report", str(files["html"])]  # fmt: skip
    assert main(argv) == 0
    printed = capsys.readouterr().out
    models = json.loads(files["json"].read_text())["models"]
    assert list(models) == ["mine (1)", "mine (2)"]
    first, second = models.values()
    assert first == second
    assert first["num_images"] == 12
    assert 0 < first["latents"]["high_frequency"] < 1
    page = files["html"].read_text()
    for text in (printed, page):
        for name, digits in (("loss", 4), ("ifid", 3), ("sample_fid", 3)):
            assert OverSeeds.of(first[name]).text(digits) in text
        assert f"{first['num_shared']} images of --data are in --reference too" in text
    assert page.count("sample 8") == 4  # its caption and its description, of each model


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--reference synthetic --num_reference_images 9", "--reference=synthetic gives 9 images, "
         "and each image of --data needs 10 neighbours"),
        ("--reference nowhere/at/all", "--reference=nowhere/at/all"),
        ("--reference synthetic --crop full", "--crop=full gives images of several sizes"),
        ("--reference synthetic --num_images 1", "FID needs 2"),
        ("--reference synthetic --features inception --inception_weights nowhere",
         "--inception_weights=nowhere does not exist"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_flag(argv, message, model, capsys):
    assert main([*COMMAND, model, *argv.split()]) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(ArgumentError, match="--resolution gives latents of 8x1, which"):
        changes(1, 8)
