"""The streamed Fréchet distance is torch-fidelity's, and its cache is never believed blindly."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from eval_fixtures import TensorImages, TinyFeatures, noisy, photographs, tiny_inception
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.registry import register_feature_extractor

from eval.codecs import PixelCodec, open_codec
from eval.digests import image_digest, network_digest
from eval.evaluate import evaluate_reconstruction
from eval.fid import FeatureStatistics, build_inception, frechet_distance

register_feature_extractor("tiny-features", TinyFeatures)


def evaluate(images, tmp_path, inception=None, model="downsample:4"):
    data = images if isinstance(images, TensorImages) else TensorImages(images)
    return evaluate_reconstruction(
        {"model": open_codec(model) if isinstance(model, str) else model},
        data,
        ["rfid"],
        inception=inception or tiny_inception(),
        fid_cache=tmp_path,
        batch_size=5,
        progress=False,
    )["model"]


def test_rfid_is_torch_fidelitys_on_the_same_images(tmp_path):
    images = photographs(24)
    outputs = []
    codec = open_codec("downsample:4")

    def remember(picture):
        outputs.append(codec.transform(picture))
        return outputs[-1]

    ours = evaluate(images, tmp_path, model=PixelCodec(remember)).rfid
    seen = [torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in outputs]
    # The last batch is filled up by repeating its last image.
    reconstructions = torch.stack(seen[: len(images)])
    theirs = calculate_metrics(
        input1=TensorImages(images),
        input2=TensorImages(reconstructions),
        fid=True,
        feature_extractor="tiny-features",
        cuda=False,
        save_cpu_ram=True,
        verbose=False,
        cache=False,
    )["frechet_inception_distance"]
    assert theirs > 1e-3
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_streaming_in_any_batches_equals_numpys_covariance():
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * 3 + 100
    statistics = FeatureStatistics()
    for part in features.split(7):
        statistics.update(part)
    result = statistics.result(6)
    assert result["mu"] == pytest.approx(features.double().numpy().mean(axis=0), rel=1e-12)
    expected = np.cov(features.double().numpy(), rowvar=False)
    assert result["sigma"] == pytest.approx(expected, rel=1e-8)


def test_equal_images_have_distance_zero_and_noise_moves_it_away(tmp_path):
    images = photographs(16)
    assert evaluate(images, tmp_path, model="identity").rfid == pytest.approx(0.0, abs=1e-6)
    distances = []
    for levels in (5.0, 60.0):
        other = FeatureStatistics()
        other.update(tiny_inception()(noisy(images, levels))[0])
        same = FeatureStatistics()
        same.update(tiny_inception()(images)[0])
        distances.append(frechet_distance(same.result(12), other.result(12)))
    assert 0 < distances[0] < distances[1]


def test_the_second_run_takes_the_originals_from_the_cache(tmp_path):
    images, first, second = photographs(20), tiny_inception(), tiny_inception()
    expected = evaluate(images, tmp_path, first).rfid
    assert len(list(tmp_path.iterdir())) == 1
    again = evaluate(images, tmp_path, second).rfid
    assert again == expected
    # 4 batches of originals and 4 of reconstructions, and one call for the width of a feature.
    assert (first.calls, second.calls) == (9, 4)


def test_images_that_changed_under_the_same_names_are_noticed_in_the_end(tmp_path):
    images = photographs(20)
    evaluate(images, tmp_path)
    changed = TensorImages(255 - images, fingerprint=TensorImages(images).fingerprint())
    outdated = evaluate(changed, tmp_path)
    assert outdated.rfid is None
    assert "have changed" in outdated.missing["rfid"]
    assert evaluate(changed, tmp_path).rfid == evaluate(changed, tmp_path / "fresh").rfid


def test_images_without_a_fingerprint_are_not_remembered(tmp_path):
    assert evaluate(TensorImages(photographs(8), fingerprint=""), tmp_path).rfid is not None
    assert not list(tmp_path.iterdir())


def test_other_weights_do_not_share_a_cache_entry(tmp_path):
    images, other = photographs(20), tiny_inception()
    other.projection.data *= 2
    assert network_digest(other) != network_digest(tiny_inception())
    evaluate(images, tmp_path)
    assert evaluate(images, tmp_path, other).rfid == evaluate(images, tmp_path / "b", other).rfid
    assert len(list(tmp_path.glob("*.npz"))) == 2


def test_a_damaged_cache_file_is_replaced(tmp_path):
    images = photographs(20)
    expected = evaluate(images, tmp_path).rfid
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    assert evaluate(images, tmp_path).rfid == expected
    with np.load(file, allow_pickle=False) as stored:
        assert stored["sigma"].shape == (12, 12)


def test_one_image_has_no_covariance_and_rfid_says_so(tmp_path):
    found = evaluate(photographs(1), tmp_path)
    assert found.rfid is None
    assert found.missing["rfid"] == "needs at least 2 images"
    assert not list(tmp_path.glob("*.npz"))


def test_digests_depend_on_pixels_and_shape():
    image = photographs(1)[0]
    assert image_digest(image) == image_digest(image.clone())
    assert image_digest(image) != image_digest(image.reshape(3, 16, 64))
    changed = image.clone()
    changed[0, 0, 0] ^= 1
    assert image_digest(image) != image_digest(changed)


def test_inception_weights_load_only_as_plain_tensors(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    with pytest.raises(ValueError, match="--inception_weights=/nowhere does not exist"):
        build_inception("/nowhere")
    torch.save({"a": Harmful()}, tmp_path / "harmful.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    for name in ("harmful.pth", "other.pth"):
        with pytest.raises(ValueError, match="is not torch-fidelity's Inception state dict"):
            build_inception(str(tmp_path / name))
    assert not (tmp_path / "executed").exists()


def test_inception_loads_from_a_file_and_gives_2048_features(tmp_path, monkeypatch):
    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    torch.save({}, tmp_path / "weights.pth")
    network = build_inception(str(tmp_path / "weights.pth"))
    assert network(photographs(1))[0].shape == (1, 2048)
