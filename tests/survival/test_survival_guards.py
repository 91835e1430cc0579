"""An adversary that runs away is told of and turned down; the same seed gives the same run."""

from __future__ import annotations

import logging
import os
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launching import launch, succeed
from survival import RESUME, Variant, command, differences, kill_at, rows
from tiny import batch, gradients, largest_difference, tiny_run, train

from modules.distributed.device import WORKSPACE, make_deterministic
from modules.errors import ArgumentError
from modules.models.discriminator import NLayerDiscriminator
from modules.training.adversary import (
    FULL_SKILL,
    LEAST_SHARE,
    LOGIT_LIMIT,
    MEMORY,
    NO_SKILL,
    PATIENCE,
    Adversary,
)

CALM = {"logits_real": 0.5, "logits_fake": -0.5, "d_weight_clamped": 0.5}
WRONG = [
    CALM | {"d_weight_clamped": 1.0},
    CALM | {"logits_real": 2 * LOGIT_LIMIT},
    CALM | {"logits_fake": -2 * LOGIT_LIMIT},
    {"logits_fake": 2 * LOGIT_LIMIT},  # no adaptive weight, and no finite logit of a real image
]


def adversary(active: bool = True) -> Adversary:
    return Adversary(active, torch.device("cpu"))


def skilled(*accuracies: float) -> Adversary:
    """One whose discriminator has long been so good on real and on fake patches."""
    ours = adversary()
    ours.accuracy = torch.tensor(accuracies)
    return ours


@pytest.mark.parametrize("wrong", WRONG)
def test_an_alarm_needs_several_wrong_windows_and_is_said_once(wrong, caplog):
    ours = adversary(active=False)
    with caplog.at_level(logging.WARNING):
        alarms = [ours.judge(wrong)["gan_alarm"] for _ in range(PATIENCE + 2)]
    assert alarms == [0.0] * (PATIENCE - 1) + [1.0] * 3
    assert len(caplog.records) == 1
    assert "--gan_guard" in caplog.text
    assert ours.felt() == 1.0
    assert ours.judge(CALM) == {"gan_alarm": 0.0}


def test_an_adversary_that_runs_away_is_turned_down_and_up_again():
    ours = skilled(1.0, 1.0)

    def felt(means: dict[str, float]) -> float:
        ours.judge(means)
        return ours.felt().item()

    shares = [felt(WRONG[0]) for _ in range(PATIENCE + 1)]
    assert shares == [1.0] * (PATIENCE - 1) + [0.5, 0.25]
    for _ in range(20):
        felt(WRONG[1])
    assert ours.felt() == LEAST_SHARE > 0
    back = [felt(CALM) for _ in range(12)]
    assert back[:2] == [2 * LEAST_SHARE, 4 * LEAST_SHARE]
    assert back[-1] == 1.0


def test_nothing_is_said_before_the_discriminator_trains():
    assert adversary().judge({"rec_loss": 1.0, "lr": 1e-3}) == {}


@given(st.floats(-1e3, 1e3), st.integers(1, 30))
def test_a_discriminator_that_says_the_same_of_everything_is_not_heard(logit, updates):
    ours, logits = adversary(), torch.full((2, 1, 3, 3), logit)
    for _ in range(updates):
        ours.watch(logits, logits)
        ours.learn(ours.seen, skip=torch.zeros(()))
        assert ours.felt() < 1e-5


@given(*[st.floats(0, 1)] * 4)
def test_the_more_it_tells_right_the_more_it_is_felt(real, fake, more_real, more_fake):
    worse = skilled(real, fake)
    better = skilled(max(real, more_real), max(fake, more_fake))
    assert 0 <= worse.felt() <= better.felt() <= 1
    assert skilled(0.54, 0.54).felt() == 0 < skilled(0.6, 0.6).felt()
    assert skilled(0.71, 0.71).felt() == 1


def test_what_it_shows_is_remembered_for_some_updates():
    ours, felt = adversary(), []
    for right in [1.0] * 10 + [-1.0] * 40:
        ours.watch(torch.tensor([[right]]), torch.tensor([[-right]]))
        ours.learn(ours.seen, skip=torch.zeros(()))
        felt.append(ours.felt().item())
    assert felt[0] == 0 < felt[2] < felt[9] == felt[10] == 1
    assert felt[-1] == 0
    before = ours.accuracy
    ours.watch(torch.tensor([[1.0]]), torch.tensor([[-1.0]]))
    ours.learn(ours.seen, skip=torch.ones(()))  # that update did not happen
    ours.learn(ours.seen, skip=torch.zeros(()))  # it was the VAE's turn
    assert torch.equal(ours.accuracy, before)


def make_logits_explode() -> None:
    forward = NLayerDiscriminator.forward

    def exploding(self: NLayerDiscriminator, *halves: torch.Tensor):
        logits = forward(self, *halves)
        return logits if len(halves) == 1 else (logits[0] + 1e3, logits[1] - 1e3)

    NLayerDiscriminator.forward = exploding


def make_logits_explode_and_die_at(place: str, call: int) -> None:
    make_logits_explode()
    kill_at(place, call)


def test_a_run_whose_logits_explode_is_turned_down_and_resumes_bit_equal(tmp_path):
    variant, steps = Variant(0, True, 1), 9
    alone, killed = tmp_path / "alone" / "run", tmp_path / "killed" / "run"
    code, output = launch(command(alone, steps, variant), make_logits_explode).wait()
    assert code == 0, output
    assert "The GAN has run away: the discriminator's logits have reached 1e+03" in output
    told = [row for row in rows(alone) if "train/gan_alarm" in row]
    assert [row["train/gan_alarm"] for row in told] == [0, 0, 1, 1, 1, 1, 1, 1]
    skill = [skilled(right, right).felt().item()  # of 1 to 7 updates
             for right in (1 - MEMORY**n / 2 for n in range(1, 8))]  # fmt: skip
    turned_down = [1, 1, *(2.0**-n for n in range(1, 6))]  # at the log points before
    assert [row["train/gan_felt"] for row in told[1:]] == pytest.approx(
        [share * shown for share, shown in zip(turned_down, skill, strict=True)]
    )

    argv = [*command(killed, steps, variant), *RESUME]
    die = partial(make_logits_explode_and_die_at, "modules.training.checkpoint:_seal", 2)
    launch(argv, die).wait()
    code, output = launch(argv, make_logits_explode).wait()
    assert code == 0, output
    assert differences(killed, alone) == []


def test_what_is_felt_multiplies_the_adversarial_term():
    def moved(felt: float | None) -> dict[str, torch.Tensor]:
        run = tiny_run("" if felt is None else "--gan_guard")
        run.update = lambda vae_turn, disc_turn: None
        if felt is not None:
            run.adversary.accuracy += NO_SKILL - 0.5 + felt * (FULL_SKILL - NO_SKILL)
        return gradients(train(run, [batch()]).raw_vae)

    all_of_it, half, nothing = moved(None), moved(0.5), moved(0.0)
    assert largest_difference(moved(1.0), all_of_it) < 1e-6
    assert largest_difference(nothing, all_of_it) > 1e-2
    between = {name: (all_of_it[name] + nothing[name]) / 2 for name in nothing}
    assert largest_difference(half, between) < 1e-6


def test_a_discriminator_that_cannot_keep_up_costs_the_reconstruction_nothing():
    """Its rate is a hundredth of the VAE's: unguarded, this takes 8 of 26 dB within 30 steps."""

    def last_psnr(flags: str) -> float:
        run = tiny_run(
            "--learning_rate 5e-4 --train_batch_size 4 --max_train_steps 75 --norm_num_groups 1 "
            f"--vae_init resampler --disc_start 25 {flags}"
        )
        train(run, [batch(4, seed=seed) for seed in range(65)])
        run.meter.flush()
        train(run, [batch(4, seed=seed) for seed in range(65, 75)])
        return run.meter.flush()["psnr"]

    alone = last_psnr("--disc_factor 0")
    slow = "--disc_learning_rate 4.5e-6 --disc_scale 1"
    assert last_psnr(f"--gan_guard {slow}") > alone - 0.3
    assert last_psnr(slow) < alone - 5


def test_a_seed_gives_the_same_run_whatever_the_number_of_workers(tmp_path):
    folders = [tmp_path / str(workers) / "run" for workers in (0, 2)]
    for folder, workers in zip(folders, (0, 2), strict=True):
        succeed(command(folder, 6, Variant(workers, True, 2), "--deterministic"))
    assert differences(*folders) == []


def test_deterministic_kernels_are_set_before_a_gpu_is_touched(monkeypatch):
    before = torch.backends.cudnn.deterministic
    monkeypatch.delenv(WORKSPACE, raising=False)
    try:
        make_deterministic()
        assert os.environ[WORKSPACE] == ":4096:8"
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = before
        os.environ.pop(WORKSPACE, None)


def test_an_environment_that_prevents_determinism_is_refused(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":8:1")
    with pytest.raises(ArgumentError, match="--deterministic needs CUBLAS_WORKSPACE_CONFIG"):
        make_deterministic()
