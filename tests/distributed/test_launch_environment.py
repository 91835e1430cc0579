"""What accelerate reads from the environment does not overrule a flag, nor pass in silence."""

from __future__ import annotations

import pytest
from accelerate.utils import DynamoBackend
from tiny import batch, tiny_arguments, tiny_run, train

from modules.builders.accelerator import settle_precision
from modules.distributed.launch_environment import (
    NUMBERS,
    UNSUPPORTED,
    check_environment,
    chosen_precision,
    undo_launchers_limit,
)
from modules.errors import ArgumentError


@pytest.fixture
def run_under(monkeypatch):
    """A tiny run with variables of the environment set."""

    def make(flags: str = "", **variables: str):
        for name, value in variables.items():
            monkeypatch.setenv(f"ACCELERATE_{name}", value)
        return tiny_run(flags)

    return make


def test_the_flags_decide_what_a_step_is_and_the_count_of_samples_is_true(run_under):
    run = run_under("--gradient_accumulation_steps 2", GRADIENT_ACCUMULATION_STEPS="3",
                    DYNAMO_BACKEND="INDUCTOR")  # fmt: skip
    assert run.accelerator.gradient_accumulation_steps == 2
    assert run.accelerator.state.dynamo_plugin.backend == DynamoBackend.NO
    train(run, [batch(seed=seed) for seed in range(6)])
    assert (run.step, run.samples) == (3, 12)


def test_what_is_not_obeyed_is_said_and_what_agrees_is_not(caplog):
    check_environment({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "3"}, 1, compiled=False)
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=3 is not obeyed" in caplog.text
    assert "--gradient_accumulation_steps decides (1)" in caplog.text
    check_environment({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, 1, compiled=False)
    assert "ACCELERATE_DYNAMO_BACKEND=INDUCTOR is not obeyed: --compile decides" in caplog.text
    caplog.clear()
    agreeing = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "ACCELERATE_DYNAMO_BACKEND": "NO",
                "ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    check_environment(agreeing, 1, compiled=False)
    assert not caplog.text


@pytest.mark.parametrize("variable", UNSUPPORTED)
def test_what_takes_networks_apart_is_refused_with_the_fix(variable):
    with pytest.raises(ArgumentError, match=f"{variable}=true: .*--multi_gpu"):
        check_environment({variable: "true"}, 1, compiled=False)


def test_the_precision_is_the_flags_then_the_launchers_and_never_an_unknown_one(run_under):
    assert chosen_precision(None, {}) == "no"
    assert chosen_precision(None, {"ACCELERATE_MIXED_PRECISION": "bf16"}) == "bf16"
    assert chosen_precision("no", {"ACCELERATE_MIXED_PRECISION": "fp8"}) == "no"
    with pytest.raises(ArgumentError, match="ACCELERATE_MIXED_PRECISION=fp8"):
        chosen_precision(None, {"ACCELERATE_MIXED_PRECISION": "fp8"})
    assert run_under(
        "--mixed_precision no", MIXED_PRECISION="bf16"
    ).accelerator.mixed_precision == ("no")


@pytest.mark.parametrize("value", ["", "two", "-1"])
@pytest.mark.parametrize("variable", NUMBERS)
def test_a_launchers_number_that_is_none_is_named(variable, value):
    undo_launchers_limit({variable: value, "ACCELERATE_MIXED_PRECISION": "no"})
    with pytest.raises(ArgumentError, match=f"{variable}={value!r} .* unset it"):
        check_environment({variable: value}, 1, compiled=False)


@pytest.mark.parametrize(("rank", "count"), [("1", None), ("2", "2")])
def test_a_rank_that_nobody_has_is_refused_instead_of_waited_for(rank, count):
    environment = {"RANK": rank} | ({"WORLD_SIZE": count} if count else {})
    with pytest.raises(ArgumentError, match=f"RANK={rank} and WORLD_SIZE={count or 1} "):
        check_environment(environment, 1, compiled=False)


@pytest.mark.parametrize("device", ["cuda:7", "bogus", "cpu:x"])
def test_a_device_that_is_not_there_is_named(device, monkeypatch):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", device)
    with pytest.raises(ArgumentError, match=f"ACCELERATE_TORCH_DEVICE={device} .*; unset it"):
        settle_precision(tiny_arguments())
