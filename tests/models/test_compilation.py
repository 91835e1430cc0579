"""Compiled networks train as uncompiled ones do, and are called the same in files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from tiny import batch, largest_difference, tiny_run, train, weights
from torch._dynamo.utils import counters

import train_vae
from eval import rehearsal
from eval.memory.random_lpips import random_lpips
from eval.metrics.precise import full_precision
from eval.protocol.codecs import VAECodec
from eval.protocol.protocol import Protocol
from eval.validation import make_validation
from modules.config.answers import answer_to
from modules.data.images.synthetic import SyntheticImages


@pytest.fixture
def quick_compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Graphs are captured as always, and differentiated by default; operations are PyTorch's."""
    backend = getattr(request, "param", "aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch():  # puts back what `compile_networks` sets
        yield
    torch._dynamo.reset()


SHALLOW = "--downsample_factor 4 --block_out_channels 8 8 8"


def graphs() -> int:
    """How many have been compiled so far."""
    return counters["stats"]["unique_graphs"]


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize(
    ("quick_compiler", "flags"),
    [("aot_eager", ""), ("eager", "--eq_prob 0.7")],  # any shape takes long to differentiate
    indirect=["quick_compiler"],
)
def test_compiled_networks_train_as_uncompiled_ones(flags: str) -> None:
    flags = f"{SHALLOW} --disc_num_layers 1 --lpips_backbone squeeze --perceptual_scale 1 {flags}"
    with random_lpips():
        plain, compiled = tiny_run(flags), tiny_run(f"{flags} --compile")
        trained = {}
        for name, run in (("plain", plain), ("compiled", compiled)):
            before = graphs()
            train(run, [batch(seed=seed, shape=(4, 8, 8)) for seed in range(3)])
            # The spectral norm's vectors are among the discriminator's.
            trained[name] = weights(run.raw_vae) | weights(run.raw_discriminator)
            assert (graphs() > before) == (name == "compiled")
    assert largest_difference(*trained.values()) < 1e-4


def without_compiler(graph: object, inputs: object) -> None:
    raise RuntimeError("Failed to find C compiler.")


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("quick_compiler", [without_compiler], indirect=True)
def test_a_machine_without_a_compiler_is_known_before_anything_is_measured() -> None:
    with pytest.raises(RuntimeError) as raised:
        tiny_run("--compile")
    assert "--compile finds no compiler" in answer_to(raised.value).message


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


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("quick_compiler", ["eager"], indirect=True)
def test_five_levels_are_compiled_and_their_validation_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deep = "--downsample_factor 16 --block_out_channels 8 8 16 16 16"
    reconstructions = []
    for run in (tiny_run(deep), tiny_run(f"{deep} --compile --alternation every_other_step")):
        codec, device = VAECodec(run.raw_vae.vae), run.accelerator.device
        with torch.no_grad(), full_precision(), codec.prepared(device):
            output = codec.reconstruct(batch()["images"], range(2), Protocol())
        reconstructions.append(output.values)
    assert torch.equal(*reconstructions)
    assert graphs() == 1  # of the sum that tries the compiler

    monkeypatch.setattr(rehearsal, "WITHOUT_LIMIT", ())
    watched = make_validation(run, SyntheticImages(2, 32, 0))
    rehearsal.rehearse(run, partial(train_vae.train, watch=None), watched)
    needed = graphs()
    assert needed > 20  # 12 blocks, with gradients and in the discriminator's turn without
    train(run, [batch(seed=seed, shape=(4, 2, 2)) for seed in range(2)])
    assert graphs() == needed


@pytest.mark.usefixtures("quick_compiler")
def test_changed_latents_of_all_sizes_share_their_graphs() -> None:
    flags = f"{SHALLOW} --eq_prob 1 --disc_factor 0"
    plain, run = tiny_run(flags), tiny_run(f"{flags} --compile")
    batches, needed = [rehearsal.random_batch(run, 1, 32)] * 12, []
    for part in (batches[:2], batches[2:]):  # of two sizes, then of two more
        train(run, part)
        needed.append(graphs())
        assert largest_difference(weights(train(plain, part).raw_vae), weights(run.raw_vae)) < 1e-4
    assert needed[1] == needed[0]


@pytest.mark.usefixtures("quick_compiler")
def test_block_that_needs_ever_new_graphs_is_no_silent_return_to_uncompiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("modules.models.compilation.GRAPHS_PER_BLOCK", 0)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        train(tiny_run("--compile"), [batch()])
