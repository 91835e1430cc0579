"""A network of the losses that is run forward and backward at once gives what autograd gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from modules.at_once import at_once

VALUES = {
    "a scalar": lambda network, images: network(images).mean(),
    "one for each image": lambda network, images: network(images).square().mean(dim=(1, 2, 3)),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
@pytest.mark.parametrize("scale", [1.0, torch.tensor(2.0**16)])
def test_value_and_gradient_are_autograds(value: Callable, scale: Tensor | float) -> None:
    network = torch.nn.Conv2d(3, 2, 3).requires_grad_(False)
    images, weights = torch.randn(2, 3, 8, 8, requires_grad=True), torch.tensor([1.0, -3.0])
    plain = value(network, images)
    (expected,) = torch.autograd.grad((weights * plain).sum(), images)
    ours = at_once(lambda images: value(network, images), images, scale)
    assert torch.equal(ours, plain)
    for _ in range(2):  # the adaptive weight asks for it as well
        (found,) = torch.autograd.grad((weights * ours).sum(), images, retain_graph=True)
        torch.testing.assert_close(found, expected)


def test_network_goes_backward_once_within_the_scale_and_keeps_no_graph() -> None:
    network, seen, activations = torch.nn.Conv2d(3, 2, 3).requires_grad_(False), [], []
    network.register_full_backward_hook(lambda module, into, out: seen.append(out[0].max().item()))
    network.register_forward_hook(lambda module, into, out: activations.append(out.grad_fn))
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    loss = at_once(lambda images: network(images).sum(), images, scale=8.0)
    with pytest.raises(RuntimeError, match="second time"):
        activations[0](torch.ones(2, 2, 6, 6))
    for _ in range(2):
        torch.autograd.grad(loss, images, retain_graph=True)
    assert seen == [8.0]


def test_nothing_goes_backward_where_nobody_asks() -> None:
    network = torch.nn.Conv2d(3, 2, 3)
    network.register_full_backward_hook(lambda *_: pytest.fail("went backward"))
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(at_once(lambda images: network(images), images), network(images))
