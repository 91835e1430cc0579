"""The streamed Fréchet distance is torch-fidelity's."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from eval_fixtures import TensorImages, TinyFeatures, noisy, photographs, tiny_inception
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.registry import register_feature_extractor

from eval.metrics.fid import FeatureStatistics, build_inception, frechet_distance
from eval.metrics.networks import Networks
from eval.protocol.codecs import PixelCodec, open_codec
from eval.protocol.evaluate import evaluate_reconstruction
from eval.protocol.loading import image_digest

register_feature_extractor("tiny-features", TinyFeatures)


def evaluate(images, model="downsample:4"):
    return evaluate_reconstruction(
        {"model": open_codec(model) if isinstance(model, str) else model},
        TensorImages(images),
        ["rfid"],
        networks=Networks(inception=tiny_inception()),
        batch_size=5,
        progress=False,
    )["model"]


def test_rfid_is_torch_fidelitys_on_the_same_images():
    images = photographs(24)
    outputs = []
    codec = open_codec("downsample:4")

    def remember(picture):
        outputs.append(codec.transform(picture))
        return outputs[-1]

    ours = evaluate(images, model=PixelCodec(remember)).rfid
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
    statistics = FeatureStatistics(6)
    for part in features.split(7):
        statistics.update(part)
    result = statistics.result()
    assert result["mu"] == pytest.approx(features.double().numpy().mean(axis=0), rel=1e-12)
    expected = np.cov(features.double().numpy(), rowvar=False)
    assert result["sigma"] == pytest.approx(expected, rel=1e-8)


def test_equal_images_have_distance_zero_and_noise_moves_it_away():
    images = photographs(16)
    assert evaluate(images, model="identity").rfid == pytest.approx(0.0, abs=1e-6)
    distances = []
    for levels in (5.0, 60.0):
        other = FeatureStatistics(12)
        other.update(tiny_inception()(noisy(images, levels))[0])
        same = FeatureStatistics(12)
        same.update(tiny_inception()(images)[0])
        distances.append(frechet_distance(same.result(), other.result()))
    assert 0 < distances[0] < distances[1]


def test_one_image_has_no_covariance_and_rfid_says_so():
    found = evaluate(photographs(1))
    assert found.rfid is None
    assert found.missing["rfid"] == "fewer than 2 images, or other ones than before"


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
