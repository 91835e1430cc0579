"""One optimizer update: clipped, skipped on the device, and right in float16."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from modules.update import (
    adapt_loss_scale,
    clip_gradients,
    loss_scale,
    step_unless,
    unscale,
)


def model_and_optimizer() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)


def test_skipped_step_leaves_weights_moments_and_step_count() -> None:
    model, optimizer = model_and_optimizer()
    for _ in range(2):
        model(torch.ones(1, 3)).sum().backward()
        step_unless(torch.zeros(()), optimizer)
    weight = model.weight.detach().clone()
    state = {k: v.clone() for k, v in optimizer.state[model.weight].items()}
    model.weight.grad.fill_(torch.nan)
    step_unless(torch.ones(()), optimizer)
    assert torch.equal(model.weight, weight)
    assert all(torch.equal(v, optimizer.state[model.weight][k]) for k, v in state.items())
    assert state["step"] == 2


def test_optimizer_without_a_switch_is_skipped_as_well() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=False)
    model(torch.ones(1, 3)).sum().backward()
    weight = model.weight.detach().clone()
    step_unless(torch.ones(()), optimizer)
    assert torch.equal(model.weight, weight)
    step_unless(torch.zeros(()), optimizer)
    assert not torch.equal(model.weight, weight)


def test_clipping_returns_the_norm_before_it() -> None:
    model, optimizer = model_and_optimizer()
    model.weight.grad, model.bias.grad = torch.full((2, 3), 3.0), torch.zeros(2)
    assert clip_gradients(optimizer, 1.0).item() == pytest.approx(3 * 6**0.5)
    assert model.weight.grad.norm().item() == pytest.approx(1.0, rel=1e-4)


def test_a_largest_norm_of_0_clips_nothing_and_still_measures() -> None:
    model, optimizer = model_and_optimizer()
    for value in (3.0, 1e30, torch.inf, torch.nan):
        model.weight.grad, model.bias.grad = torch.full((2, 3), value), torch.zeros(2)
        norm = clip_gradients(optimizer, 0.0)
        assert torch.equal(model.weight.grad, torch.full((2, 3), value)) or value != value
        assert norm.isfinite() == (value == 3.0)


def test_loss_scale_cancels_for_both_optimizers_and_shrinks_after_an_overflow() -> None:
    networks = [model_and_optimizer() for _ in range(2)]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    accelerator = SimpleNamespace(scaler=scaler, device=torch.device("cpu"))
    optimizers = [SimpleNamespace(optimizer=optimizer) for _, optimizer in networks]
    for overflow in (False, True):
        scale = loss_scale(accelerator)
        for model, optimizer in networks:
            optimizer.zero_grad()
            (scale * model(torch.ones(1, 3)).sum()).backward()
        if overflow:
            networks[1][0].weight.grad[0, 0] = torch.inf
        unscale(accelerator, optimizers)
        if not overflow:
            for model, _ in networks:
                assert torch.equal(model.weight.grad, torch.ones(2, 3))
        adapt_loss_scale(accelerator)
    assert scaler.get_scale() == 512.0
    for _ in range(20):  # no number of overflows makes gradients vanish
        networks[0][0].weight.grad.fill_(torch.nan)
        unscale(accelerator, optimizers[:1])
        adapt_loss_scale(accelerator)
    assert scaler.get_scale() == 1.0
    plain = SimpleNamespace(scaler=None, device=torch.device("cpu"))
    assert loss_scale(plain) == 1
