"""An adversary that runs away is told of and turned down; the same seed gives the same run."""

from __future__ import annotations

import logging
import os
from functools import partial

import pytest
import torch
from launching import launch, succeed
from survival import RESUME, Variant, command, differences, kill_at, rows
from tiny import batch, tiny_run

from modules.distributed.device import WORKSPACE, make_deterministic
from modules.errors import ArgumentError
from modules.models.discriminator import NLayerDiscriminator
from modules.training.gan_guard import LEAST_SHARE, LOGIT_LIMIT, PATIENCE, GanGuard

CALM = {"logits_real": 0.5, "logits_fake": -0.5, "d_weight": 10.0}
WRONG = [
    CALM | {"d_weight": 1e4},
    CALM | {"logits_real": 2 * LOGIT_LIMIT},
    CALM | {"logits_fake": -2 * LOGIT_LIMIT},
    {"logits_fake": 2 * LOGIT_LIMIT},  # no adaptive weight, and no finite logit of a real image
]


@pytest.mark.parametrize("wrong", WRONG)
def test_an_alarm_needs_several_wrong_windows_and_is_said_once(wrong, caplog):
    guard = GanGuard(active=False, weight_max=1e4)
    with caplog.at_level(logging.WARNING):
        alarms = [guard.judge(wrong)["gan_alarm"] for _ in range(PATIENCE + 2)]
    assert alarms == [0.0] * (PATIENCE - 1) + [1.0] * 3
    assert len(caplog.records) == 1
    assert "--gan_guard" in caplog.text
    assert guard.share == 1.0
    assert guard.judge(CALM) == {"gan_alarm": 0.0}


def test_an_active_guard_turns_the_adversary_down_and_up_again():
    guard = GanGuard(active=True, weight_max=1e4)
    shares = [guard.judge(WRONG[0])["gan_share"] for _ in range(PATIENCE + 1)]
    assert shares == [1.0] * (PATIENCE - 1) + [0.5, 0.25]
    for _ in range(20):
        guard.judge(WRONG[1])
    assert guard.share == LEAST_SHARE > 0
    back = [guard.judge(CALM)["gan_share"] for _ in range(12)]
    assert back[:2] == [2 * LEAST_SHARE, 4 * LEAST_SHARE]
    assert back[-1] == 1.0


def test_a_guard_continues_from_its_state():
    guard, other = GanGuard(True, 1e4), GanGuard(True, 1e4)
    for _ in range(PATIENCE + 1):
        guard.judge(WRONG[0])
    other.load_state_dict(guard.state_dict())
    for means in (WRONG[0], CALM, WRONG[1]):
        assert guard.judge(means) == other.judge(means)


def test_a_guard_that_was_switched_off_leaves_no_adversary_turned_down():
    guard, off = GanGuard(True, 1e4), GanGuard(False, 1e4)
    for _ in range(PATIENCE + 1):
        guard.judge(WRONG[0])
    off.load_state_dict(guard.state_dict())
    assert off.share == 1.0


def test_nothing_is_said_before_the_discriminator_trains():
    assert GanGuard(True, 1e4).judge({"rec_loss": 1.0, "lr": 1e-3}) == {}


def make_logits_explode() -> None:
    forward = NLayerDiscriminator.forward

    def exploding(self: NLayerDiscriminator, *halves: torch.Tensor):
        logits = forward(self, *halves)
        return logits + 1e3 if len(halves) == 1 else tuple(half + 1e3 for half in logits)

    NLayerDiscriminator.forward = exploding


def make_logits_explode_and_die_at(place: str, call: int) -> None:
    make_logits_explode()
    kill_at(place, call)


def test_a_run_whose_logits_explode_is_turned_down_and_resumes_bit_equal(tmp_path):
    variant, steps = Variant(0, True, 1), 9
    alone, killed = tmp_path / "alone" / "run", tmp_path / "killed" / "run"
    code, output = launch(command(alone, steps, variant, "--gan_guard"), make_logits_explode).wait()
    assert code == 0, output
    assert "The GAN has run away: the discriminator's logits have reached 1e+03" in output
    told = [row for row in rows(alone) if "train/gan_alarm" in row]
    assert [row["train/gan_alarm"] for row in told] == [0, 0, 1, 1, 1, 1, 1, 1]
    assert [row["train/gan_share"] for row in told] == [1, 1, *(2.0**-n for n in range(1, 7))]

    argv = [*command(killed, steps, variant, "--gan_guard"), *RESUME]
    die = partial(make_logits_explode_and_die_at, "modules.training.checkpoint:_seal", 2)
    launch(argv, die).wait()
    code, output = launch(argv, make_logits_explode).wait()
    assert code == 0, output
    assert differences(killed, alone) == []


def test_the_share_of_the_guard_multiplies_the_adversarial_term():
    run = tiny_run("--gan_guard", [batch()])
    assert run.adversarial_share(1) == 1.0
    run.gan_guard.share = 0.25
    assert run.adversarial_share(1) == 0.25


@pytest.mark.parametrize("deterministic", [[], ["--deterministic"]])
def test_a_seed_gives_the_same_run_whatever_the_number_of_workers(tmp_path, deterministic):
    folders = []
    for workers in (0, 2):
        folders.append(tmp_path / str(workers) / "run")
        succeed(command(folders[-1], 6, Variant(workers, True, 2), *deterministic))
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
