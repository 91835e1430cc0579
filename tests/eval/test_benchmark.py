"""The benchmark measures the trainer and nothing but the trainer, against the same mathematics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lpips
import pytest
import torch
from tiny import (
    FLAGS,
    batch,
    gradients,
    largest_difference,
    slices,
    tiny_run,
    train,
    weights,
)

from eval.__main__ import main
from eval.commands.benchmark import RIVALS
from eval.commands.checks import measured_arguments
from eval.memory.random_lpips import random_lpips
from eval.rehearsal import random_batch
from eval.speed.benchmark import TEXTBOOKS
from eval.speed.device_speed import FlopMeter, peak_flops_per_s, useful_flops
from eval.speed.levers import UNDO
from eval.speed.loader_speed import FAST, OURS, PLAIN, PlainImages, loader_speeds
from eval.speed.phases import PHASES, PhaseClock, watched
from eval.speed.stopwatch import Spread, Stopwatch
from eval.speed.textbook_step import TextbookTrainer
from modules.data.loader import TrainingImages
from modules.models.lpips import build_lpips

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

SMALL = [flag for flag in FLAGS.split() if flag not in ("--report_to", "none")]
CPU = torch.device("cpu")


def gradients_after_one_batch(flags: str, given: dict) -> tuple[object, dict, dict]:
    """The script's gradients of both networks, with the run as it was before in the first place."""
    untouched, run = tiny_run(flags), tiny_run(flags)
    run.update = lambda vae_turn, disc_turn: None
    train(run, [given])
    return untouched, gradients(run.raw_vae.vae), gradients(run.raw_discriminator)


@pytest.mark.parametrize("rival", ["textbook", "latent-diffusion"])
@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_textbook_gradients_are_the_trainers_times_the_number_of_pixels(
    rival: str, loss: str
) -> None:
    flags = f"--rec_loss {loss} --disc_norm_type group --kl_scale 1e-3 --lpips_backbone squeeze"
    flags, given = f"{flags} --perceptual_scale 1", batch()
    with random_lpips():
        run, of_vae, of_disc = gradients_after_one_batch(flags, given)
        trainer = TextbookTrainer(run, repeat_forward=rival == "latent-diffusion")
    trainer.backward(given)
    elements = given["images"][0].numel()
    theirs = {n: g / elements for n, g in gradients(trainer.vae).items()}
    assert largest_difference(of_vae, theirs) < 1e-5
    assert largest_difference(of_disc, gradients(trainer.discriminator)) < 1e-5


def test_textbook_step_accumulates_and_moves_both_networks_and_the_average() -> None:
    run = tiny_run("--use_ema --disc_norm_type group")
    trainer, whole = TextbookTrainer(run), batch(4)
    before = weights(trainer.vae), weights(trainer.discriminator)
    trainer.step(list(slices(whole, 2)))
    for old, network in zip(before, (trainer.vae, trainer.discriminator), strict=True):
        assert any(not torch.equal(old[name], new) for name, new in weights(network).items())
    assert any(
        not torch.equal(a, b.detach())
        for a, b in zip(trainer.averages, run.raw_vae.vae.parameters(), strict=True)
    )
    run = tiny_run("--disc_factor 0")  # its adaptive weight belongs to a micro-batch
    one, two = TextbookTrainer(run), TextbookTrainer(run)
    one.backward(whole)
    for part in slices(whole, 2):
        two.backward(part, share=0.5)
    assert largest_difference(gradients(one.vae), gradients(two.vae)) < 1e-5


def test_textbook_step_knows_nothing_of_our_shortcuts() -> None:
    run = tiny_run()
    trainer = TextbookTrainer(run)
    kinds = {type(module).__name__ for module in trainer.vae.modules()}
    assert "ResnetBlock2D" in kinds
    assert "LeanResnetBlock" not in kinds
    assert trainer.vae.decoder.conv_in.weight.is_contiguous()
    assert not trainer.optimizer_vae.defaults["fused"]


@pytest.mark.parametrize("lever", sorted(UNDO))
def test_a_lever_taken_back_changes_the_way_and_not_the_weights(lever: str) -> None:
    results, layouts, kinds, fused = [], [], [], []
    for undo in (lambda run: None, UNDO[lever]):
        run, seen = tiny_run(), []
        undo(run)
        run.raw_vae.vae.encoder.down_blocks[0].register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(inputs[0].is_contiguous())
        )
        train(run, [batch(seed=seed) for seed in range(3)])
        results.append(weights(run.raw_vae))
        layouts.append(seen)
        kinds.append({type(module).__name__ for module in run.raw_vae.modules()})
        fused.append(run.optimizer_vae.param_groups[0]["fused"])
    assert largest_difference(*results) < 1e-4
    assert (layouts[0] != layouts[1]) == (lever == "other-layout")
    assert ("LeanResnetBlock" not in kinds[1]) == (lever == "no-lean-blocks")
    assert ("LeanUpsample" not in kinds[1]) == (lever == "no-lean-upsampling")
    assert (not fused[1]) == (lever == "no-fused-adamw")


def test_the_command_names_every_rival_there_is() -> None:
    assert set(RIVALS) == {*TEXTBOOKS, *UNDO}


def test_flags_to_compare_must_leave_the_images_of_a_step(capsys: pytest.CaptureFixture) -> None:
    code = main(["benchmark", *SMALL, "--compare_flags", " --train_batch_size 3"])
    assert code == 2
    assert "must not change --train_batch_size" in capsys.readouterr().err


def test_watching_a_step_changes_nothing_and_leaves_nothing_behind() -> None:
    given, results = batch(), []
    for watch in (False, True):
        run = tiny_run("--use_ema")
        hooks = len(run.raw_vae.vae.decoder._forward_hooks)
        if not watch:
            train(run, [given, given])
        else:
            clock = PhaseClock(Stopwatch(CPU))
            with watched(run, clock):
                clock.begin(PHASES[0])
                train(run, [given, given])
                times = clock.milliseconds()
            for owner in (run, run.ema, run.accelerator):
                assert not {"update", "backward"} & vars(owner).keys()
            assert len(run.raw_vae.vae.decoder._forward_hooks) == hooks
        results.append(weights(run.raw_vae))
    assert all(torch.equal(a, b) for a, b in zip(*(r.values() for r in results), strict=True))
    assert times.keys() == set(PHASES)
    assert all(time > 0 for time in times.values())


def test_flops_are_three_times_the_forward_pass_of_what_is_trained() -> None:
    flags = [*SMALL, "--disc_factor", "0", "--mixed_precision", "no"]
    found = useful_flops(measured_arguments(flags))
    run, meter = tiny_run("--disc_factor 0"), FlopMeter()
    given = batch()
    images, noise = run.to_device(given)
    with torch.no_grad(), meter:
        run.raw_vae(images, noise)
    # The first convolution needs no gradient of its input.
    assert 2.8 * meter.total < found < 3 * meter.total


def test_flops_do_not_count_recomputation_and_grow_with_accumulation() -> None:
    plain = useful_flops(measured_arguments(SMALL))
    recomputed = [
        useful_flops(measured_arguments([*SMALL, *flags]))
        for flags in (["--gradient_checkpointing"], ["--recompute", "full"])
    ]
    twice = useful_flops(measured_arguments([*SMALL, "--gradient_accumulation_steps", "2"]))
    assert recomputed == [plain, plain]
    assert twice == 2 * plain


def test_random_batches_are_what_the_loader_yields() -> None:
    run = tiny_run()
    made, given = random_batch(run, 2, 32), batch()
    assert made.keys() == given.keys()
    assert made["images"].dtype == given["images"].dtype
    assert made["images"].shape == given["images"].shape
    assert made["noise"].shape == given["noise"].shape


def test_random_lpips_is_the_same_every_time_and_nothing_is_left_of_it() -> None:
    before, state = lpips.LPIPS, torch.get_rng_state()
    with random_lpips():
        one = build_lpips("squeeze")
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(1)
        other = build_lpips("squeeze")
    assert largest_difference(weights(one), weights(other)) == 0
    assert lpips.LPIPS is before


def test_ratio_is_taken_pair_by_pair() -> None:
    found = Spread.ratio([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    assert (found.p10, found.median, found.p90) == (2.0, 2.0, 2.0)
    assert Spread.of([1, 2, 3, 4, 100]).median == 3


def test_matmul_peak_of_a_precision_without_units_takes_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sides = []

    def slow(side: int, device: torch.device, dtype: torch.dtype) -> float:
        sides.append(side)
        return 1e3 * side**3 / 256**3

    monkeypatch.setattr("eval.speed.device_speed.fastest_product", slow)
    assert peak_flops_per_s(CPU, torch.bfloat16) == 2 * 256**3
    assert sides == [256]


def test_benchmark_writes_the_named_numbers_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--steps", "2", "--warmup", "2", "--phase_steps", "1", "--compare", "textbook"]
    flags += ["no-lean-blocks", "--compare_flags", "--recompute norm"]
    flags += ["--batches", "1", "2", "--json", "found.json", "--output_dir", "run", "--use_ema"]
    assert main(["benchmark", *SMALL, *flags]) == 0
    assert [path.name for path in tmp_path.rglob("*")] == ["found.json"]
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"images_per_s", "ms", "peak_memory", "mfu", "ratio"} <= found.keys()
    assert set(PHASES) <= found["ms"].keys()
    assert found["ratio"].keys() == {"textbook", "no-lean-blocks", "--recompute norm"}
    assert [row["configuration"].split(", ")[1] for row in found["scaling"]] == [
        "batch 1 x 1",
        "batch 2 x 1",
    ]
    assert "times as fast" in capsys.readouterr().out


def test_flags_that_nobody_knows_are_named(capsys: pytest.CaptureFixture) -> None:
    assert main(["benchmark", "--resolutoin", "64"]) == 2
    assert "--resolutoin is not a flag; did you mean --resolution?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["loader", "--resolutoin", "64"])
    assert "--resolutoin" in capsys.readouterr().err


def test_plain_and_our_loader_take_turns_over_the_same_pictures(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in pictures.glob("*.png"):  # PIL looks at the content
        (tmp_path / f"{file.stem}.jpg").write_bytes(file.read_bytes())
    turns = []

    def noted(*args: Any, **options: Any) -> TrainingImages:
        turns.append(options["fast_jpeg_decoding"])
        return TrainingImages(*args, **options)

    monkeypatch.setattr("eval.speed.loader_speed.TrainingImages", noted)
    found = loader_speeds(tmp_path, 16, workers=0, rounds=3, images=4, batch_size=2)
    assert found.keys() == {OURS, FAST, PLAIN}
    assert all(len(speeds) == 3 and min(speeds) > 0 for speeds in found.values())
    assert turns == [False, True, True, False, False, True]
    image = PlainImages(sorted(tmp_path.glob("*.jpg")), 16)[0]
    assert image.shape == (3, 16, 16)
    assert -1 <= image.min() < image.max() <= 1
