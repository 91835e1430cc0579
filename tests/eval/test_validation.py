"""Training's validation measures what it was asked to, as the command does, and decides by it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.error import URLError

import pytest
import torch
from eval_fixtures import TinyFeatures, photographs, tiny_inception
from PIL import Image
from tiny import tiny_run

from eval import validation
from eval.__main__ import main
from eval.memory.random_lpips import random_lpips
from eval.metrics import fid, networks
from eval.validation import Validation, make_validation
from modules.data.images.synthetic import SyntheticImages
from modules.data.sources.open import open_folder
from modules.errors import ArgumentError
from modules.export.vae import export_vae

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
EVERYTHING = "--validation_metrics ssim lpips rfid --lpips_backbone squeeze"


@pytest.fixture
def inception(monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyFeatures]:
    """A small one in the place of Inception; LPIPS with random weights."""
    network = tiny_inception()
    for user in (validation, networks):
        monkeypatch.setattr(user, "build_inception", lambda weights: network)
    with random_lpips():
        yield network


def watched(flags: str, count: int = 6) -> tuple[Validation, torch.nn.Module]:
    run = tiny_run(flags)
    return make_validation(run, SyntheticImages(count, 32, 5)), run.raw_vae.vae


@pytest.mark.usefixtures("inception")
def test_every_metric_is_the_commands_to_the_last_digit(tmp_path):
    run, folder, file = tiny_run(EVERYTHING), tmp_path / "photos", tmp_path / "found.json"
    folder.mkdir()
    for number, image in enumerate(photographs(6, 40)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    measured = make_validation(run, open_folder(folder)).run(run.raw_vae.vae).metrics
    export_vae(run.raw_vae.vae, tmp_path / "vae")
    names = ["psnr", "ssim", "lpips_squeeze", "rfid", "rec", "kl"]
    assert main([
        "reconstruction", "--model", str(tmp_path / "vae"), "--data", str(folder), "--resolution",
        "32", "--batch_size", str(run.args.validation_batch_size), "--json", str(file),
        "--metrics", *names, "--device", "cpu",
    ]) == 0  # fmt: skip
    expected = json.loads(file.read_text())["models"]["vae"]["summary"]
    assert {"rfid", "lpips_squeeze"} <= expected.keys()
    assert expected.items() <= measured.items()


def test_only_what_was_asked_for_is_measured_and_built(inception):
    images, vae = watched("--validation_metrics psnr --lpips_backbone squeeze")
    assert images.judges.lpips == {}
    assert images.judges.inception is None
    assert not {"ssim", "rfid", "lpips_squeeze"} & images.run(vae).metrics.keys()
    run = tiny_run("--perceptual_scale 1 --lpips_backbone squeeze")
    images = make_validation(run, SyntheticImages(2, 32, 5))
    assert images.judges.lpips == {"squeeze": run.perceptual}
    assert {"psnr", "ssim", "lpips_squeeze"} <= images.run(run.raw_vae.vae).metrics.keys()
    assert inception.calls == 0


def test_the_originals_features_are_computed_once_and_never_those_of_other_images(inception):
    images, vae = watched("--validation_metrics rfid --validation_batch_size 3")
    first = images.run(vae).metrics
    assert inception.calls == 1 + 2 + 2  # to learn the width, then two batches of each
    assert images.run(vae).metrics == first
    assert inception.calls == 5 + 1 + 2
    images.images.indices[0] = 3  # as if another image were there now
    assert "rfid" not in images.run(vae).metrics
    anew, (other, vae) = images.run(vae).metrics, watched("--validation_metrics rfid")
    other.images.indices[0] = 3
    assert anew["rfid"] == pytest.approx(other.run(vae).metrics["rfid"], rel=1e-6)
    assert anew["rfid"] != pytest.approx(first["rfid"], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "values"),
    [("psnr", (20, 21)), ("ssim", (0.5, 0.6)), ("rfid", (9, 8)), ("lpips", (0.3, 0.2))],
)
@pytest.mark.usefixtures("inception")
def test_the_best_is_decided_by_the_metric_in_its_direction(name, values):
    images = watched(f"{EVERYTHING} --best_metric {name}")[0]
    key = "lpips_squeeze" if name == "lpips" else name
    worse, better = ({key: value, "nan_images": 0} for value in values)
    assert images.improves(worse, {})
    assert images.improves(better, worse)
    for metrics in (worse, better, better | {"nan_images": 1}, {"nan_images": 0},
                    {key: float("nan"), "nan_images": 0}):  # fmt: skip
        assert not images.improves(metrics, better)


def test_all_processes_decide_by_the_numbers_of_the_first(monkeypatch):
    images, vae = watched("")
    monkeypatch.setattr(validation, "gather_from_processes", lambda own: [{"psnr": 1.0}, *own])
    assert images.run(vae).metrics == {"psnr": 1.0}


def test_weights_that_are_missing_are_said_with_the_flag(monkeypatch, tmp_path):
    with pytest.raises(ArgumentError, match=r"--inception_weights=.*; or leave rfid out"):
        watched(f"--validation_metrics rfid --inception_weights {tmp_path}/none")

    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no connection")

    monkeypatch.setattr(fid, "FeatureExtractorInceptionV3", unreachable)
    with pytest.raises(ArgumentError, match=r"give them with --inception_weights FILE; or leave"):
        watched("--validation_metrics rfid")
    monkeypatch.setattr("lpips.LPIPS", unreachable)
    with pytest.raises(ArgumentError, match="--lpips_weights FILE"):
        watched("--validation_metrics lpips")


@pytest.mark.usefixtures("inception")
def test_one_image_is_no_distribution():
    with pytest.raises(ArgumentError, match="at least 2 validation images"):
        watched("--validation_metrics rfid", count=1)
