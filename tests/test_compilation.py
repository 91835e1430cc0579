"""Compiled networks train as uncompiled ones do, and are called the same in files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from tiny import batch, largest_difference, tiny_run, train, weights
from torch._dynamo.utils import counters

from eval.random_lpips import with_random_lpips
from eval.script import measured_arguments


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are captured and differentiated as always, but their operations are PyTorch's own."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("quick_compiler")
def test_compiled_networks_train_as_uncompiled_ones() -> None:
    backbone = "--lpips_backbone squeeze"
    flags = f"{backbone} --perceptual_scale 1"
    torch.manual_seed(0)  # of LPIPS
    with with_random_lpips(measured_arguments(backbone.split())) as args:
        flags += f" --lpips_weights {args.losses.lpips_weights}"
        plain, compiled = tiny_run(flags), tiny_run(f"{flags} --compile")
        trained = {}
        for name, run in (("plain", plain), ("compiled", compiled)):
            graphs = counters["stats"]["unique_graphs"]
            train(run, [batch(seed=seed) for seed in range(3)])
            # The spectral norm's vectors are among the discriminator's.
            trained[name] = weights(run.raw_vae) | weights(run.raw_discriminator)
            assert (counters["stats"]["unique_graphs"] > graphs) == (name == "compiled")
    assert largest_difference(*trained.values()) < 1e-4


@pytest.mark.usefixtures("quick_compiler")
def test_every_network_is_compiled_where_it_lies() -> None:
    run = tiny_run("--compile")
    vae, discriminator = run.raw_vae.vae, run.raw_discriminator
    inner = [*vae.encoder.down_blocks, vae.encoder.mid_block, vae.decoder.mid_block,
             *vae.decoder.up_blocks, discriminator.model]  # fmt: skip
    assert all(block._compiled_call_impl is not None for block in inner)
    plain = tiny_run()
    assert weights(run.raw_vae).keys() == weights(plain.raw_vae).keys()
    assert weights(discriminator).keys() == weights(plain.raw_discriminator).keys()
