"""The moving average of the weights."""

from __future__ import annotations

import math

import pytest
import torch

from modules.training.ema import ExponentialMovingAverage


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 3, 3))


def test_average_follows_its_definition() -> None:
    module = network()
    ema, expected = ExponentialMovingAverage(module, 0.5, 0.8), module[0].weight.detach().clone()
    for n in range(1, 8):
        with torch.no_grad():
            module[0].weight.add_(torch.randn_like(module[0].weight))
        ema.update(torch.zeros(()))
        decay = min(0.8, 0.5 ** (1 / (0.5 * n)))
        expected = decay * expected + (1 - decay) * module[0].weight.detach()
    torch.testing.assert_close(ema.averages[0], expected)
    assert ema.num_updates == 7


@pytest.mark.parametrize("half_life", [0.02, 0.1])
def test_a_longer_run_is_averaged_over_the_same_share_of_it(half_life: float) -> None:
    """What the weights were until one half-life before the end counts half, or less, at any length.

    Exactly: updates after a share t of the run count 1 - t ** (log 2 / half-life).
    """
    for updates in (500, 5000):
        module = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(module.weight)
        ema = ExponentialMovingAverage(module, half_life, 0.9999)
        for n in range(updates):
            if n == round(updates * (1 - half_life)):
                torch.nn.init.ones_(module.weight)
            ema.update(torch.zeros(()))
        new = 1 - (1 - half_life) ** (math.log(2) / half_life)
        assert ema.averages[0].item() == pytest.approx(new, abs=0.01)


def test_skipped_update_changes_nothing_even_if_weights_differ() -> None:
    module = network()
    ema = ExponentialMovingAverage(module, 0.05, 0.9)
    before = {name: value.clone() for name, value in ema.state_dict().items()}
    with torch.no_grad():
        module[0].weight.add_(1.0)
    ema.update(torch.ones(()))
    assert all(torch.equal(before[name], value) for name, value in ema.state_dict().items())


def test_average_stands_in_for_a_while_and_the_weights_come_back() -> None:
    module = network().to(memory_format=torch.channels_last)
    ema = ExponentialMovingAverage(module, 0.05, 0.9)
    with torch.no_grad():
        module[0].weight.add_(1.0)
    trained, pointer = module[0].weight.clone(), module[0].weight.data_ptr()
    with ema.applied():
        torch.testing.assert_close(module[0].weight, trained - 1.0)
    assert torch.equal(module[0].weight, trained)
    assert module[0].weight.data_ptr() == pointer


def test_weights_come_back_after_an_error_too() -> None:
    module = network()
    ema = ExponentialMovingAverage(module, 0.05, 0.9)
    with torch.no_grad():
        module[0].weight.add_(1.0)
    trained = module[0].weight.clone()
    with pytest.raises(ZeroDivisionError), ema.applied():
        1 / 0  # noqa: B018
    assert torch.equal(module[0].weight, trained)


def test_state_is_restored_exactly() -> None:
    module = network()
    ema, other = (ExponentialMovingAverage(of, 0.05, 0.9) for of in (module, network()))
    with torch.no_grad():
        module[0].weight.add_(1.0)
    ema.update(torch.zeros(()))
    other.load_state_dict(ema.state_dict())
    assert all(
        torch.equal(value, other.state_dict()[name]) for name, value in ema.state_dict().items()
    )
    incomplete = ema.state_dict()
    del incomplete["0.weight"]
    with pytest.raises(KeyError):
        other.load_state_dict(incomplete)


def test_frozen_parameters_are_not_averaged() -> None:
    module = network()
    module[0].requires_grad_(False)
    assert ExponentialMovingAverage(module, 0.05, 0.9).names == ["1.weight", "1.bias"]
