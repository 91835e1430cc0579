"""An evaluation measures what it says, on every image once, and leaves everything as it was."""

from __future__ import annotations

import math
from dataclasses import replace

import lpips
import numpy as np
import pytest
import torch
from eval_fixtures import (
    RESOLUTION,
    PixelDistance,
    TensorImages,
    photographs,
    random_images,
    tiny_inception,
    tiny_vae,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models import squeezenet1_1

from eval.metrics.columns import COLUMN
from eval.metrics.image import mean_squared_error, psnr
from eval.metrics.networks import Networks, backbone_of, open_networks
from eval.metrics.precise import full_precision
from eval.protocol.codecs import VAECodec, distinct_labels, open_codec, quantize
from eval.protocol.comparison import Comparison, worst_positions
from eval.protocol.evaluate import evaluate_reconstruction
from eval.protocol.intervals import bootstrap, intervals, paired_differences
from eval.protocol.loading import own_batches
from eval.protocol.precision import PrecisionResult, measure_precision, should_force_upcast
from eval.protocol.protocol import Protocol, ProtocolImages
from modules.data.images.images import normalize, to_uint8, to_uint8_tensor
from modules.data.images.synthetic import SyntheticImages
from modules.image_modes import to_picture

METRICS = ["psnr", "ssim", "color", "frequency", "rec", "kl"]
SMALL = Protocol(resolution=RESOLUTION)


def evaluate(models, images, metrics=METRICS, **options):
    if not isinstance(models, dict):
        models = {"model": models}
    if isinstance(images, torch.Tensor):
        images = TensorImages(images)
    return evaluate_reconstruction(models, images, metrics, progress=False, **options)


class BrokenAt(VAECodec):
    """Gives NaN for the images at some positions."""

    def __init__(self, vae, positions):
        super().__init__(vae)
        self.positions = positions

    def reconstruct(self, images, indices, protocol):
        output = super().reconstruct(images, indices, protocol)
        broken = torch.tensor([index in self.positions for index in indices])
        output.values[broken, 0, 0, 0] = torch.nan
        pictures = quantize(output.values, "nearest")
        return replace(output, images=pictures, finite=~broken)


def test_numbers_are_those_of_the_model_computed_by_hand():
    vae, images = tiny_vae(), photographs(5)
    found = evaluate(VAECodec(vae), images, batch_size=2)["model"]
    with torch.no_grad():
        posterior = vae.encode(normalize(images)).latent_dist
        values = vae.decode(posterior.mode()).sample
    mse = mean_squared_error(images, to_uint8(values))
    # A rounding tie may fall the other way: one level in one of 3072 values.
    assert found.per_image["mse"] == pytest.approx(mse.numpy(), abs=0.1)
    summary = found.summary()
    assert summary["psnr"] == pytest.approx(psnr(mse).mean().item(), abs=1e-3)
    assert summary["psnr_pooled"] == pytest.approx(psnr(mse.mean()).item(), abs=1e-3)
    error = normalize(images) - values
    assert summary["rec_l1"] == pytest.approx(error.abs().mean().item(), rel=1e-5)
    assert summary["rec_l2"] == pytest.approx(error.square().mean().item(), rel=1e-5)
    assert summary["kl"] == pytest.approx(posterior.kl().mean().item(), rel=1e-5)
    assert summary["num_images"] == 5


def test_the_training_losses_are_of_the_unclamped_output():
    vae = tiny_vae()
    vae.decoder.conv_out.weight.data *= 100
    summary = evaluate(VAECodec(vae), photographs(2))["model"].summary()
    assert summary["rec_l1"] > 2  # more than two clamped images can differ by


@settings(max_examples=12)
@given(count=st.integers(1, 9), batch_size=st.integers(1, 5))
def test_each_image_counts_once_for_any_number_and_batch_size(count, batch_size):
    images = random_images(count, 16)
    seen = []
    for batch in own_batches(TensorImages(images), batch_size, 0, False):
        assert len(batch.images) == min(batch_size, count) == len(batch.filled_positions)
        assert torch.equal(batch.images[: batch.count], images[batch.positions])
        seen += batch.positions
    assert seen == list(range(count))


def test_the_last_short_batch_changes_no_digit():
    vae, images = tiny_vae(), photographs(8)
    whole = evaluate(VAECodec(vae), images, batch_size=4)["model"]
    short = evaluate(VAECodec(vae), images[:5], batch_size=4)["model"]
    for key, values in short.per_image.items():
        assert np.array_equal(values, whole.per_image[key][:5]), key


def test_identical_images_do_not_make_a_mean_infinite():
    summary = evaluate(open_codec("identity"), photographs(3))["model"].summary()
    assert summary["psnr"] == summary["psnr_pooled"] == 100.0
    assert (summary["ssim"], summary["rec_l1"]) == (pytest.approx(1.0), 0.0)
    assert "kl" not in summary


def test_modes_precision_memory_format_and_gradients_are_put_back():
    vae = tiny_vae().train().to(memory_format=torch.channels_last)
    vae.decoder.eval()
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    before = {name: p.stride() for name, p in vae.named_parameters()}
    plain = evaluate(VAECodec(tiny_vae()), photographs(3))["model"]
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = evaluate(VAECodec(vae), photographs(3))["model"]
            assert torch.is_autocast_enabled("cpu")
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"
    assert vae.training
    assert vae.encoder.training
    assert not vae.decoder.training
    assert {name: p.stride() for name, p in vae.named_parameters()} == before
    assert all(p.grad is None for p in vae.parameters())
    for key, values in found.per_image.items():
        assert np.array_equal(values, plain.per_image[key]), key


@pytest.mark.parametrize("allowed", [True, False])
def test_full_precision_is_restored_after_an_error(allowed):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed

    def fail():
        with full_precision():
            assert not torch.backends.cudnn.allow_tf32
            assert not torch.backends.cuda.matmul.allow_tf32
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.backends.cudnn.allow_tf32 == allowed
    assert torch.backends.cuda.matmul.allow_tf32 == allowed


def test_half_precision_weights_are_refused():
    with pytest.raises(ValueError, match="evaluated in float32"):
        evaluate(VAECodec(tiny_vae().bfloat16()), photographs(1))


def test_nan_images_are_counted_and_never_averaged_in():
    vae, images = tiny_vae(), photographs(6)
    metrics, lpips = [*METRICS, "rfid", "lpips_vgg"], {"vgg": PixelDistance()}
    both = Networks(lpips, tiny_inception())
    found = evaluate(BrokenAt(vae, [1, 4]), images, metrics, networks=both, latents=True)["model"]
    good = evaluate(VAECodec(vae), images[[0, 2, 3, 5]], metrics, networks=Networks(lpips))["model"]
    assert found.nan_images == [1, 4]
    assert found.num_images == 4
    assert found.summary()["nan_images"] == 2
    for key, value in good.summary().items():
        if key != "nan_images":
            assert found.summary()[key] == pytest.approx(value, rel=1e-6), key
    assert "rfid" not in found.summary()
    assert found.missing["rfid"] == "2 reconstructions are not finite"
    assert found.latents.num_images == 4
    assert all(math.isfinite(interval.low) for interval in intervals(found).values())


def test_a_model_that_gives_only_nan_has_no_numbers_and_does_not_stop_the_others():
    vae = tiny_vae()
    vae.decoder.conv_in.weight.data.fill_(torch.nan)
    models = {"broken": VAECodec(vae), "identity": open_codec("identity")}
    found = evaluate(models, photographs(3), latents=True)
    assert math.isnan(found["broken"].summary()["psnr"])
    assert found["broken"].latents is None
    assert found["identity"].summary()["psnr"] == 100.0
    assert found["broken"].summary()["num_images"] == 0
    assert {difference.better for difference in paired_differences(found)} == {None}


def test_unreadable_images_are_named_and_left_out():
    images = photographs(6)
    found = evaluate(open_codec("jpeg:10"), TensorImages(images, damaged=[0, 4]), batch_size=2)
    kept = evaluate(open_codec("jpeg:10"), images[[1, 2, 3, 5]])
    assert found["model"].unreadable == {0: "damaged on purpose", 4: "damaged on purpose"}
    assert found["model"].summary() == kept["model"].summary()
    with pytest.raises(ValueError, match="the set is empty"):
        evaluate(open_codec("identity"), images[:0])
    with pytest.raises(ValueError, match="none of 2 images could be read"):
        evaluate(open_codec("identity"), TensorImages(images[:2], damaged=[0, 1]))


def test_models_with_other_latents_and_factors_stand_side_by_side():
    models = {"f4c4": VAECodec(tiny_vae()), "f8c16": VAECodec(tiny_vae(1, 8, 16))}
    found = evaluate(models, photographs(3), latents=True)
    assert len(found["f4c4"].latents.channel_mean) == 4
    assert len(found["f8c16"].latents.channel_mean) == 16
    with pytest.raises(ValueError, match="choose a --resolution divisible by 8"):
        evaluate(models, random_images(1, 20))


def test_metrics_without_their_network_are_missing_with_a_reason():
    found = evaluate(
        open_codec("identity"),
        photographs(2),
        ["psnr", "lpips", "rfid"],
        networks=Networks({"vgg": PixelDistance()}, unavailable={"rfid": "no connection"}),
    )["model"]
    assert found.missing == {"lpips_alex": "its network was not given", "rfid": "no connection"}
    assert set(found.summary()) == {"psnr", "psnr_pooled", "lpips_vgg", "num_images", "nan_images"}
    with pytest.raises(ValueError, match="--metrics=psnrr must be one of psnr"):
        evaluate(open_codec("identity"), photographs(1), ["psnrr"])


def test_lpips_is_the_packages_on_rounded_images(tmp_path):
    torch.manual_seed(0)
    file = str(tmp_path / "squeeze.pth")
    torch.save(squeezenet1_1(weights=None).state_dict(), file)
    assert backbone_of(file) == "squeeze"
    networks = open_networks(["lpips_squeeze"], [file])
    images = photographs(3, 64)
    found = evaluate(open_codec("jpeg:10"), images, ["lpips_squeeze"], networks=networks)
    package = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False).eval()
    package.net.load_state_dict(networks.lpips["squeeze"].network.net.state_dict())
    jpeg = open_codec("jpeg:10").transform
    outputs = torch.stack([to_uint8_tensor(jpeg(to_picture(image))) for image in images])
    with torch.no_grad():
        expected = package(normalize(images), normalize(outputs)).flatten()
    assert found["model"].per_image["lpips_squeeze"] == pytest.approx(expected.numpy(), rel=1e-5)


def test_a_file_of_weights_that_is_no_backbone_is_an_error(tmp_path):
    torch.save({"features.0.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is not torchvision's state dict of alexnet, vgg16"):
        open_networks(["lpips"], [str(tmp_path / "other.pth")])
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match="is not torchvision's alex state dict"):
        open_networks(["lpips_alex"], [str(tmp_path / "part.pth")])
    with pytest.raises(ValueError, match="--lpips_weights=/nowhere does not exist"):
        open_networks(["lpips"], ["/nowhere"])


def test_baselines_do_what_their_names_say():
    images = photographs(4, 64)
    names = ["identity", "jpeg:95", "jpeg:10", "downsample:1", "downsample:8"]
    found = evaluate({name: open_codec(name) for name in names}, images, ["psnr", "frequency"])
    score = {name: found[name].summary() for name in names}
    assert score["downsample:1"]["psnr"] == score["identity"]["psnr"] == 100.0
    assert score["jpeg:95"]["psnr"] > score["jpeg:10"]["psnr"] + 5
    assert score["downsample:8"]["high_frequency"] < 0.2


@pytest.mark.parametrize("name", ["jpeg:0", "jpeg:", "jpeg:ten", "downsample:0", "downsample:x"])
def test_a_mistyped_baseline_says_what_it_should_be(name):
    with pytest.raises(ValueError, match=f"--model={name} must be (jpeg:QUALITY|downsample:FACT)"):
        open_codec(name)


def test_a_folder_that_is_not_a_vae_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(ValueError, match=f"--model={tmp_path}"):
        open_codec(str(tmp_path))


def test_labels_are_short_and_distinct():
    assert distinct_labels(["runs/a", "jpeg:10"]) == ["a", "jpeg:10"]
    names = ["x/one/vae", "x/two/vae/", "identity"]
    assert distinct_labels(names) == ["one/vae", "two/vae", "identity"]
    assert distinct_labels(["a/vae", "a/vae"]) == ["vae (1)", "vae (2)"]
    assert distinct_labels(["vae", "x/vae"]) == ["vae", "x/vae"]


def test_samples_belong_to_the_image_not_to_its_batch():
    vae, images = tiny_vae(), photographs(5)
    options = {"protocol": Protocol(resolution=RESOLUTION, posterior="sample")}
    one = evaluate(VAECodec(vae), images, batch_size=5, **options)["model"]
    other = evaluate(VAECodec(vae), images, batch_size=2, **options)["model"]
    mode = evaluate(VAECodec(vae), images)["model"]
    assert one.per_image["psnr"] == pytest.approx(other.per_image["psnr"], abs=1e-3)
    assert abs(one.per_image["rec_l2"] - mode.per_image["rec_l2"]).min() > 1e-6


def test_truncation_darkens_and_rounding_does_not():
    values = 2 * torch.tensor([254.4, 254.9]) / 255 - 1
    assert quantize(values, "truncate").tolist() == [254, 254]
    assert quantize(values, "nearest").tolist() == [254, 255]


def test_kept_samples_and_worst_images_are_those_that_were_measured():
    codec, images = VAECodec(tiny_vae()), ProtocolImages(SyntheticImages(7, RESOLUTION, 0), SMALL)
    found = evaluate(codec, images, batch_size=3, num_samples=2)["model"]
    assert [position for position, *_ in found.samples] == [0, 1]
    for position, original, output, _ in found.samples:
        assert torch.equal(original, images[position])
        mse = mean_squared_error(original[None], output[None]).item()
        assert mse == found.per_image["mse"][position]
    worst = worst_positions(found, 3)
    assert found.per_image["mse"][worst].tolist() == sorted(found.per_image["mse"])[:-4:-1]
    comparison = Comparison(
        {"model": codec}, {"model": "mine"}, {"model": found}, images, torch.device("cpu"), 3, {}
    )
    assert [sample.position for sample in comparison.samples] == [0, 1]
    assert [sample.position for sample in comparison.worst] == worst
    for sample in comparison.worst:
        output = sample.reconstructions["model"]
        mse = mean_squared_error(sample.original[None], output[None]).item()
        assert mse == pytest.approx(found.per_image["mse"][sample.position], rel=1e-3)


def test_the_content_hash_changes_with_a_pixel_and_not_with_the_model():
    images = photographs(3)
    first = evaluate(open_codec("identity"), images)["model"].content
    assert evaluate(open_codec("jpeg:10"), images, batch_size=1)["model"].content == first
    images[1, 0, 0, 0] ^= 1
    assert evaluate(open_codec("identity"), images)["model"].content != first


@pytest.mark.parametrize("size", [(100, 40), (33, 64), (32, 32), (20, 25)])
@pytest.mark.parametrize("crop", ["adm", "resize"])
def test_crops_are_square_for_images_of_any_size(size, crop):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8))
    assert Protocol(resolution=32, crop=crop).cut(picture).size == (32, 32)


def test_the_adm_crop_is_its_definition():
    pixels = np.random.default_rng(0).integers(0, 255, (150, 260, 3), np.uint8)
    # Once halved by 2x2 boxes: 75 x 130; bicubic to a short side of 64: 64 x 111; centre.
    halved = Image.fromarray(pixels).resize((130, 75), Image.Resampling.BOX)
    expected = halved.resize((round(130 * 64 / 75), 64), Image.Resampling.BICUBIC)
    left = (expected.width - 64) // 2
    cut = Protocol(resolution=64).cut(Image.fromarray(pixels))
    assert np.array_equal(np.array(cut), np.array(expected)[:, left : left + 64])


def test_full_size_keeps_pixels_and_evaluates_sizes_together():
    class Mixed:
        name = "mixed"
        sizes = ((70, 40), (64, 96), (33, 32))

        def __len__(self):
            return 3

        def open(self, index):
            return SyntheticImages(3, 128, 0).open(index).crop((0, 0, *self.sizes[index]))

        def label(self, index):
            return str(index)

    protocol = Protocol(crop="full")
    images = ProtocolImages(Mixed(), protocol)
    assert [tuple(image.shape[1:]) for image in images] == [(32, 64), (96, 64), (32, 32)]
    found = evaluate(VAECodec(tiny_vae()), images, protocol=protocol)["model"]
    assert found.num_images == 3


def test_a_subset_is_spread_evenly_over_the_data():
    images = ProtocolImages(SyntheticImages(10, 32, 0), SMALL, num_images=4)
    assert images.indices == [0, 2, 5, 7]
    assert ProtocolImages(SyntheticImages(3, 32, 0), SMALL, num_images=9).indices == [0, 1, 2]
    with pytest.raises(ValueError, match="--num_images=0"):
        ProtocolImages(SyntheticImages(3, 32, 0), SMALL, num_images=0)


def test_protocol_refuses_what_it_does_not_offer():
    for flag in ("crop", "posterior", "rounding"):
        with pytest.raises(ValueError, match=f"--{flag}=other must be one of"):
            Protocol(**{flag: "other"})


def test_the_interval_covers_the_mean_and_shrinks_with_more_images():
    generator = np.random.default_rng(0)
    hits, widths = 0, {}
    for count in (20, 200):
        values = generator.normal(5.0, 2.0, (count, 60))
        found = bootstrap(values)
        hits += sum(interval.low < 5.0 < interval.high for interval in found)
        widths[count] = np.mean([interval.high - interval.low for interval in found])
    assert 0.88 < hits / 120 < 0.99
    assert widths[20] / widths[200] == pytest.approx(math.sqrt(10), rel=0.15)
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    # The normal interval of 200 images is 2 x 1.96 x 2 / sqrt(200) wide.
    assert widths[200] == pytest.approx(0.554, rel=0.06)


def test_nan_entries_are_not_part_of_an_interval():
    values = np.random.default_rng(0).normal(size=(50, 1))
    holes = np.concatenate([values, np.full((50, 1), np.nan)])
    assert bootstrap(holes)[0].mean == bootstrap(values)[0].mean
    assert bootstrap(holes)[0].high == pytest.approx(bootstrap(values)[0].high, abs=0.05)
    assert math.isnan(bootstrap(np.full((3, 1), np.nan))[0].mean)


def test_paired_differences_see_what_separate_intervals_cannot():
    images = photographs(12)
    qualities = {"good": 40, "better": 45, "same": 40}
    models = {name: open_codec(f"jpeg:{quality}") for name, quality in qualities.items()}
    found = evaluate(models, images, ["psnr"])
    good, better = (intervals(found[name])["psnr"] for name in ("good", "better"))
    assert better.low < good.high  # the intervals overlap
    verdict = {(d.first, d.second): d.better for d in paired_differences(found)}
    assert verdict["good", "better"] == "better"
    assert verdict["good", "same"] is None


def test_lower_is_better_where_the_column_says_so():
    images = photographs(6)
    models = {"rough": open_codec("jpeg:5"), "fine": open_codec("jpeg:90")}
    found = evaluate(models, images, ["frequency", "psnr"])
    verdicts = {d.metric: d.better for d in paired_differences(found)}
    assert verdicts == {"psnr": "fine", "low_frequency": "fine", "high_frequency": None}
    assert COLUMN["low_frequency"].better == "lower"


def test_precision_finds_the_loss_of_bf16_and_leaves_the_model_alone():
    vae, images = tiny_vae(), TensorImages(photographs(3))
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    found = measure_precision(vae, images, batch_size=2, progress=False)
    assert found["fp32"].psnr_lost == 0
    assert found["fp32"].psnr_to_fp32 == 100
    assert found["fp16"].psnr_to_fp32 > found["bf16"].psnr_to_fp32 > 30
    assert found["fp32"].largest == pytest.approx(found["fp16"].largest, rel=0.01)
    assert should_force_upcast(found)[0] is False
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())


def test_an_overflow_in_fp16_is_found_and_asks_for_upcasting():
    vae = tiny_vae()
    vae.decoder.conv_in.weight.data *= 1e6  # the following GroupNorm undoes it in fp32
    found = measure_precision(vae, TensorImages(photographs(3)), batch_size=2, progress=False)
    assert found["fp32"].bad_images == found["bf16"].bad_images == 0
    assert found["fp16"].bad_images == 3
    assert found["fp32"].largest > 65504
    upcast, reason = should_force_upcast(found)
    assert upcast
    assert "NaN or infinity for 3 of 3" in reason


def test_force_upcast_also_follows_headroom_and_loss():
    def result(precision, largest=10.0, lost=0.0):
        return PrecisionResult(precision, largest, "decoder.x", 0, 30.0, lost, 50.0, 3)

    safe = {"fp32": result("fp32"), "fp16": result("fp16")}
    assert should_force_upcast(safe)[0] is False
    assert should_force_upcast({**safe, "fp32": result("fp32", largest=40000.0)})[0] is True
    assert should_force_upcast({**safe, "fp16": result("fp16", lost=0.2)})[0] is True
