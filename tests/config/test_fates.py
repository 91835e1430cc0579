"""On resume every flag takes effect, is warned of, or is refused; and what is said is true."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import batch, tiny_arguments, tiny_run, train, weights

from eval.memory.random_lpips import random_lpips
from modules.builders.data import open_data
from modules.builders.networks import make_vae
from modules.builders.optimizers import training_length
from modules.config.arguments import FLAGS, LAUNCH_ONLY
from modules.config.fates import FATES, REFUSED, TABLE, TAKES_EFFECT, WARNED, changed_flags
from modules.config.objective import GAN_LENGTHS
from modules.data.images.synthetic import SyntheticImages
from modules.errors import ArgumentError
from modules.output.checkpoint_folders import TRAINER_STATE
from modules.tracking.metrics_log import comparable
from modules.training.checkpoint import DISCRIMINATOR, save_checkpoint
from modules.training.resume import flags_in_force, reached_by, resume, trainer_state
from modules.training.run import Run
from modules.training.schedule import Reached

DATA = {"num_train_images": 100, "data_fingerprint": "a", "validation_fingerprint": "v"}
COSINE = "--lr_scheduler cosine --disc_lr_scheduler cosine --lr_warmup_steps 0 --max_train_steps 8"

ARGUMENTS = tiny_arguments()
VAE = make_vae(ARGUMENTS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Of a run of 8 steps, after 3."""
    run = train(tiny_run(COSINE), [batch(seed=seed) for seed in range(3)])
    run.best, run.validation_due = {"step": 2, "psnr": 30.0}, False
    return save(run, tmp_path_factory.mktemp("checkpoints"))


def save(run: Run, folder: Path) -> Path:
    return save_checkpoint(run.accelerator, folder, run.step, None, trainer_state(run, DATA), None)


@pytest.fixture
def edited(checkpoint, tmp_path):
    """The checkpoint with another trainer_state.json: entries by name, None takes one out."""

    def edit(**entries: object) -> Path:
        for file in checkpoint.iterdir():
            (tmp_path / file.name).symlink_to(file)
        state = json.loads((checkpoint / TRAINER_STATE).read_text()) | entries
        state = {name: value for name, value in state.items() if value is not None}
        (tmp_path / TRAINER_STATE).unlink()
        (tmp_path / TRAINER_STATE).write_text(json.dumps(state))
        return tmp_path

    return edit


def resumed(path: Path, flags: str = "", data: dict = DATA, own: bool = True) -> Run:
    """own: the checkpoint is of the run in --output_dir."""
    args = tiny_arguments(f"{COSINE} {flags}")
    run = tiny_run(f"{COSINE} {flags}", reached=reached_by(path, args, make_vae(args)))
    with patch("modules.training.resume.is_checkpoint_of", return_value=own):
        resume(run, path, data)
    return run


def flags_of(path: Path) -> dict:
    return json.loads((path / TRAINER_STATE).read_text())["flags"]


def test_every_flag_has_exactly_one_fate_and_a_reason_unless_it_takes_effect():
    names = [name for _, _, flags in TABLE for name in flags.split()]
    assert sorted(names) == sorted(FLAGS)
    for name, (fate, reason) in FATES.items():
        assert fate in (TAKES_EFFECT, WARNED, REFUSED)
        assert (fate == TAKES_EFFECT) == (not reason), name


def test_a_checkpoint_holds_every_flag_but_secrets(checkpoint):
    assert FATES.keys() - set(LAUNCH_ONLY) <= flags_of(checkpoint).keys()
    assert "hub_token" not in flags_of(checkpoint)


def test_without_a_change_nothing_is_said_and_every_tensor_is_kept(checkpoint, caplog):
    caplog.set_level(logging.INFO, "modules")
    ours = resumed(checkpoint)
    assert not [r for r in caplog.records if "Resumed" not in r.message]
    assert ours.history == []
    theirs = train(tiny_run(COSINE), [batch(seed=seed) for seed in range(3)])
    for run in (ours, theirs):
        train(run, [batch(seed=3)])
    for part in ("optimizer_vae", "optimizer_disc", "scheduler_vae", "scheduler_disc"):
        one, two = (getattr(run, part).state_dict() for run in (ours, theirs))
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("fate", [TAKES_EFFECT, WARNED])
def test_every_flag_that_may_change_is_named_with_both_values(checkpoint, edited, caplog, fate):
    caplog.set_level(logging.INFO, "modules")
    names = [name for name in flags_of(checkpoint) if FATES.get(name, ("",))[0] == fate]
    path = edited(flags=flags_of(checkpoint) | dict.fromkeys(names, "before"), data_fingerprint="b")
    run = resumed(path)
    level = {TAKES_EFFECT: logging.INFO, WARNED: logging.WARNING}[fate]
    said = "\n".join(r.getMessage() for r in caplog.records if r.levelno == level)
    for name in names:
        assert f"--{name}={run.history[0]['flags'][name][1]}".split("=[")[0] in said
    assert said.count("(was before)") == len(names)
    assert run.history[0]["step"] == 3
    assert list(run.history[0]["flags"]) == names


@pytest.mark.parametrize("name", [name for name, (fate, _) in FATES.items() if fate == REFUSED])
def test_what_would_make_the_checkpoint_meaningless_is_refused(checkpoint, edited, name):
    path = edited(flags=flags_of(checkpoint) | {name: "before"})
    with pytest.raises(ArgumentError, match=f"--{name} is before there and ") as raised:
        reached_by(path, tiny_arguments(COSINE), VAE)
    assert FATES[name][1] in str(raised.value)


def test_the_optimizers_and_their_schedules_are_those_of_the_flags(checkpoint):
    run = resumed(
        checkpoint,
        "--learning_rate 1e-2 --disc_learning_rate 1e-5 --adam_beta1 0.5 --disc_adam_beta2 0.9 "
        "--adam_weight_decay 0.1 --adam_epsilon 1e-4 --max_train_steps 12",
    )
    vae, disc = run.optimizer_vae.param_groups[0], run.optimizer_disc.param_groups[0]
    share = 0.5 * (1 + math.cos(math.pi * 3 / 12))
    assert run.learning_rates() == pytest.approx({"lr": 1e-2 * share, "disc_lr": 1e-5 * share})
    assert (vae["lr"], disc["lr"]) == tuple(run.learning_rates().values())
    assert (vae["betas"], disc["betas"]) == ((0.5, 0.999), (0.5, 0.9))
    for group in (vae, disc):
        assert (group["weight_decay"], group["eps"]) == (0.1, 1e-4)
    before = run.raw_vae.vae.decoder.conv_out.weight.clone()
    train(run, [batch(seed=3)])
    assert not torch.equal(before, run.raw_vae.vae.decoder.conv_out.weight)


def test_a_run_without_a_gan_keeps_no_discriminator_and_one_can_come_later(checkpoint, tmp_path):
    off = f"{COSINE} --disc_factor 0"
    path = save(train(tiny_run(off), [batch(seed=seed) for seed in range(3)]), tmp_path)
    assert (checkpoint / DISCRIMINATOR).exists()
    assert not (path / DISCRIMINATOR).exists()
    drawn = weights(tiny_run(off).raw_discriminator)
    for source, flags, rates in ((path, "--disc_factor 0", {"lr"}), (path, "", {"lr", "disc_lr"}),
                                 (checkpoint, "--disc_factor 0", {"lr"})):  # fmt: skip
        run = resumed(source, flags)
        assert run.learning_rates().keys() == rates
        found = weights(run.raw_discriminator)
        same = all(torch.equal(found[name], tensor) for name, tensor in drawn.items())
        assert same == (source == path)
        assert train(run, [batch(seed=3)]).step == 4


@pytest.mark.parametrize("start", [0, 5])
def test_schedules_end_with_the_run_also_where_the_gan_begins_at_another_step(
    checkpoint, tmp_path, start
):
    without = train(tiny_run(f"{COSINE} --disc_start 6"), [batch(seed=seed) for seed in range(3)])
    for path in (checkpoint, save(without, tmp_path)):
        run = resumed(path, f"--disc_start {start}")
        train(run, [batch(seed=seed) for seed in range(5)])
        assert run.step == 8
        assert run.learning_rates() == pytest.approx({"lr": 0.0, "disc_lr": 0.0})


@pytest.mark.parametrize("steps", [6, 80])
def test_a_gan_that_has_begun_stays_where_it_is_when_the_run_becomes_another_length(
    tmp_path, steps
):
    quarters = " ".join(f"--{name} 0.25" for name in GAN_LENGTHS)
    begun = train(tiny_run(f"{COSINE} {quarters}"), [batch(seed=seed) for seed in range(3)])
    assert begun.schedule.lengths == (2, 2, 2)
    for number in range(2):  # also of a run that was resumed already
        path = save(begun, tmp_path / str(number))
        begun = resumed(path, f"{quarters} --max_train_steps {steps * (number + 1)}")
        assert begun.schedule.lengths == (2, 2, 2)
        assert begun.schedule.trains_discriminator(begun.step)
    other = resumed(path, f"{quarters} --disc_start 0.5 --max_train_steps 80")
    assert other.schedule.lengths == (40, 2, 2)  # another start was asked for
    waiting = train(tiny_run(f"{COSINE} {quarters}"), [batch(seed=seed) for seed in range(2)])
    path = save(waiting, tmp_path / "waiting")
    assert resumed(path, f"{quarters} --max_train_steps 80").schedule.lengths == (20, 20, 20)


@given(st.integers(1, 9), st.integers(1, 200), st.integers(0, 20), *[st.integers(1, 8)] * 2)
def test_epochs_are_counted_in_images_whatever_the_batches_were(epochs, size, step, before, now):
    opt = replace(ARGUMENTS.optimization, max_train_steps=None, num_train_epochs=epochs,
                  train_batch_size=now)  # fmt: skip
    args = replace(ARGUMENTS, optimization=opt)
    samples = step * before
    steps = training_length(args, size, 1, Reached(step, samples))
    assert steps >= step
    left = samples + (steps - step) * now - epochs * size
    assert 0 <= left < now or (steps == step and left >= 0)
    if before == now and samples <= epochs * size:
        assert steps == training_length(args, size, 1, Reached())


def test_other_validation_images_begin_the_best_so_far_anew(checkpoint, edited, caplog):
    same = resumed(checkpoint)
    assert (same.best["psnr"], same.validation_due) == (30.0, False)
    for path, flags, data in (
        (checkpoint, "", DATA | {"validation_fingerprint": "w"}),
        (checkpoint, "--num_validation_images 5", DATA),
        (
            edited(history=[{"step": 1, "flags": {}, "measured_anew": True}]),
            "--resolution 64",
            DATA,
        ),
    ):
        run = resumed(path, flags, data)
        assert (run.best, run.validation_due, run.measured_since) == ({}, True, 3)
        assert "begin anew at step 3" in caplog.text
        caplog.clear()
    unvalidated = resumed(checkpoint, "", DATA | {"validation_fingerprint": None})
    assert unvalidated.best["psnr"] == 30.0


def test_a_run_that_branches_off_measures_where_it_begins_and_has_a_best_of_its_own(checkpoint):
    run = resumed(checkpoint, own=False)
    assert (run.best, run.validation_due) == ({}, True)
    assert not run.history


def test_the_same_images_elsewhere_are_no_reason_to_warn(checkpoint, caplog):
    resumed(checkpoint, "--train_data_dir moved")
    assert not caplog.text
    resumed(checkpoint, "--train_data_dir other", DATA | {"data_fingerprint": "b"})
    assert "--train_data_dir=other (was None): other images" in caplog.text


def test_which_images_are_validated_on_is_noticed(pictures, tmp_path):
    def images(flags: str) -> str | None:
        return open_data(
            tiny_arguments(f"--train_data_dir {pictures} {flags}")
        ).validation_fingerprint

    held = images("--num_validation_images 4")
    assert images("--num_validation_images 4 --learning_rate 1") == held
    assert images("--num_validation_images 4 --seed 1") != held
    assert images("--num_validation_images 5") != held
    SyntheticImages(1, 24, seed=9).open(0).save(tmp_path / "other.png")
    given = images(f"--validation_data_dir {tmp_path}")
    assert given not in (held, None)
    assert images(f"--validation_data_dir {tmp_path} --seed 1") == given
    assert images("--num_validation_images 0") is None


def test_a_checkpoint_of_an_earlier_version_resumes_with_one_warning(checkpoint, edited, caplog):
    names = ("latent_channels", "disc_num_layers", "decoder_only", "use_quant_conv")
    networks = {name: flags_of(checkpoint)[name] for name in names}
    earlier = {"networks": networks} | dict.fromkeys(
        ("flags", "history", "vae_updates", "disc_updates", "validation_fingerprint")
    )
    run = resumed(edited(**earlier), "--learning_rate 1e-2")
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "did not write down its flags" in caplog.text
    assert run.learning_rates()["lr"] == pytest.approx(1e-2 * (1 + math.cos(math.pi * 3 / 8)) / 2)


def test_a_checkpoint_from_before_there_were_types_holds_a_patch_discriminator(checkpoint, edited):
    path = edited(flags={k: v for k, v in flags_of(checkpoint).items() if k != "disc_type"})
    resumed(path)
    with pytest.raises(ArgumentError, match="--disc_type is patch there and features here"):
        resumed(path, "--disc_type features --disc_num_layers 3")


def test_a_gan_on_features_may_be_turned_off_and_on(tmp_path):
    eyes = "--disc_type features --disc_num_layers 3 --disc_hidden_channels 8 --lpips_backbone alex"
    off = f"{eyes} --disc_factor 0"
    without = save(train(tiny_run(f"{COSINE} {off}"), [batch()]), tmp_path / "off")
    with random_lpips():
        resumed(without, eyes)
        run = train(tiny_run(f"{COSINE} {eyes}"), [batch()])
        path = save(run, tmp_path / "on")
    with patch("lpips.LPIPS", side_effect=AssertionError("nothing looks through it")):
        resumed(path, off)


def test_a_run_may_turn_to_float16(checkpoint, monkeypatch):
    """Its loss scale is not in the checkpoint, and begins as it does in a new run."""
    scaler = torch.amp.GradScaler("cpu")
    run = tiny_run(COSINE)
    run.accelerator.scaler = scaler
    resume(run, checkpoint, DATA)
    assert run.accelerator.scaler is scaler
    assert run.step == 3


def test_a_guard_that_is_switched_off_turns_the_adversary_down_no_longer(checkpoint, edited):
    path = edited(adversary={"share": 0.25, "wrong_in_a_row": 0, "accuracy": [1.0, 1.0]})
    assert resumed(path).adversary.felt() == 1.0
    assert resumed(path, "--gan_guard").adversary.felt() == 0.25


def test_patience_goes_on_where_it_was_unless_something_else_is_measured(
    checkpoint, edited, caplog
):
    path = edited(stale=2)
    run = resumed(path, "--early_stopping 2")
    assert run.finished
    assert "nothing is left to train: 2 validations in a row" in caplog.text
    assert not resumed(path, "--early_stopping 3").finished
    assert not resumed(path).finished
    for flags, data, own in (("--best_metric ssim", DATA, True), ("", DATA, False),
                             ("", {**DATA, "validation_fingerprint": "w"}, True)):  # fmt: skip
        assert resumed(path, f"--early_stopping 2 {flags}", data, own).stale == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans())), st.integers(0, 9))
def test_only_validations_of_other_images_are_left_out(found, since):
    rows = [{"step": step} | ({"val/psnr": float(i)} if validated else {"train/lr": 1.0})
            for i, (step, validated) in enumerate(sorted(found))]  # fmt: skip
    kept = comparable(rows, since)
    assert [row["step"] for row in kept] == [row["step"] for row in rows]
    assert [row for row in kept if "train/lr" in row] == [r for r in rows if "train/lr" in r]
    validated = [row for row in rows if "val/psnr" in row]
    older = [row for row in validated if row["step"] <= since]
    assert [row for row in kept if "val/psnr" in row] == validated[max(0, len(older) - 1) :]


def test_heads_on_features_fit_one_backbone_alone():
    vae = make_vae(tiny_arguments())

    def changed(*before_and_now):
        settled = [flags_in_force(tiny_arguments(flags), vae) for flags in before_and_now]
        return changed_flags(*settled, REFUSED)

    backbones = [f"--lpips_backbone {name}" for name in ("alex", "vgg")]
    assert not changed(*backbones)
    features = [f"--disc_type features --disc_num_layers 3 {flag}" for flag in backbones]
    assert changed(*features) == {"lpips_backbone under --disc_type=features": ["alex", "vgg"]}
