"""What a run will need of the device's memory is tried before it begins, and leaves no trace."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_fixtures import tiny_inception
from launching import ADVERSARIAL, TINY, launch
from tiny import batch, tiny_arguments, tiny_run, train
from torch import Tensor
from torch.utils._pytree import tree_flatten

import train_vae
from eval import rehearsal, validation
from eval.memory.plan import BLOCK, AllocationMeter
from eval.memory.random_lpips import random_lpips
from eval.rehearsal import LATENTS, TRAINING, VALIDATION, levers, rehearse
from eval.validation import make_validation
from modules.data.images.synthetic import SyntheticImages
from modules.errors import RunStopped
from modules.training.run import Run

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.fixture(autouse=True)
def on_this_device_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "WITHOUT_LIMIT", ())


def rehearsed(run: Run, num_validation_images: int = 2) -> Run:
    images = SyntheticImages(num_validation_images, 32, 0) if num_validation_images else None
    rehearse(run, partial(train_vae.train, watch=None), make_validation(run, images))
    return run


def everything(run: Run) -> dict[str, Any]:
    """All that a run is, as numbers and copies of tensors."""
    networks, accelerator = (run.raw_vae, run.raw_discriminator), run.accelerator
    states = [*networks, run.optimizer_vae, run.optimizer_disc, run.scheduler_vae,
              run.scheduler_disc, run.ema, run.guard, run.adversary, run.meter]  # fmt: skip
    kept = {
        "states": [state.state_dict() for state in states],
        "gradients": [p.grad for network in networks for p in network.parameters()],
        "strides": [p.stride() for network in networks for p in network.parameters()],
        "needed": [p.requires_grad for network in networks for p in network.parameters()],
        "modes": [module.training for network in networks for module in network.modules()],
        "counters": (run.step, run.samples, list(run.rejected), run.meter.images),
        "windows": (accelerator.step, accelerator.sync_gradients,
                    accelerator.gradient_accumulation_steps),
        "chance": torch.get_rng_state(),
    }  # fmt: skip
    leaves, shape = tree_flatten(kept)
    copies = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return {"shape": shape, "leaves": copies}


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours["shape"] == theirs["shape"]
    for one, other in zip(ours["leaves"], theirs["leaves"], strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--gradient_accumulation_steps 3 --disc_norm_type batch --train_resolutions 32 64",
        "--alternation every_other_step --mixed_precision bf16 --recompute norm --disc_start 2",
        "--no_set_grads_to_none --gan_guard --recompute full --disc_norm_type group",
    ],
)
def test_rehearsal_changes_nothing_at_the_start_and_after_steps(flags: str) -> None:
    flags = f"{flags} --use_ema"
    batches = [batch(seed=seed) for seed in range(6)]
    plain = train(tiny_run(flags), batches)
    before = everything(run := tiny_run(flags))
    assert_equal(everything(rehearsed(run)), before)
    train(run, batches[:3])
    for network in (run.raw_vae, run.raw_discriminator):
        network.zero_grad(set_to_none=True)  # as in a process that has just resumed
    before = everything(run)
    assert_equal(everything(rehearsed(run)), before)
    train(run, batches[3:])
    assert_equal(everything(run), everything(plain))


def test_everything_that_the_run_will_ever_do_is_tried_at_its_largest() -> None:
    run, seen = tiny_run("--train_resolutions 32 64 --disc_start 90 --eq_prob 1"), []
    for network in (run.raw_vae.vae.encoder, run.raw_discriminator):
        network.register_forward_pre_hook(
            lambda module, inputs: seen.append((type(module).__name__, *inputs[0].shape))
        )
    rehearsed(run)
    trained, judged = ("Encoder", 2, 3, 64, 64), ("NLayerDiscriminator", 2, 3, 64, 64)
    assert seen == [trained, judged, judged] * 2 + [("Encoder", 2, 3, 32, 32)]  # of 2 images
    run.max_train_steps = 90  # the discriminator never comes
    seen.clear()
    rehearsed(run, num_validation_images=0)
    assert seen == [trained] * 2 + [("Encoder", 8, 3, 32, 32)]  # the pixels of 2 of 64 x 64


def test_networks_that_only_a_validation_asks_are_tried_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inception = tiny_inception()
    monkeypatch.setattr(validation, "build_inception", lambda weights: inception)
    with random_lpips():
        run = tiny_run("--validation_metrics lpips rfid --lpips_backbone squeeze")
        watched = make_validation(run, SyntheticImages(2, 32, 0))
    looked_at: list[int] = []
    for judge in (inception, watched.judges.lpips["squeeze"]):
        judge.register_forward_pre_hook(lambda _, inputs: looked_at.append(len(inputs[0])))
    rehearse(run, partial(train_vae.train, watch=None), watched)
    assert looked_at == [2, 2]


def test_moments_that_come_with_the_first_update_are_in_memory() -> None:
    run = tiny_run()
    expected = [-(-(p.numel() * 8 + 4) // BLOCK) * BLOCK
                for n in (run.raw_vae, run.raw_discriminator) for p in n.parameters()]  # fmt: skip
    with AllocationMeter() as meter:
        with rehearsal.moments(run):
            assert meter.now == sum(expected)
        assert meter.now == 0
        train(run, [batch()])
        before = meter.now
        with rehearsal.moments(run):
            assert meter.now == before


@pytest.mark.parametrize("part", [TRAINING, VALIDATION, LATENTS])
def test_what_does_not_fit_is_named_with_the_flags_that_lower_it(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OUT_OF_MEMORY

    run = tiny_run("--validation_batch_size 2")
    if part == TRAINING:  # the discriminator's turn, which the first step does not have
        run.discriminator.model.register_forward_pre_hook(fail)
    monkeypatch.setattr(rehearsal, "measure_batch", fail)
    if part == LATENTS:
        run.raw_vae.vae.encoder.register_forward_pre_hook(
            lambda module, _: fail() if not module.training else None
        )
    with pytest.raises(RunStopped) as caught:
        rehearsed(run, num_validation_images=2 * (part != LATENTS))
    message = str(caught.value)
    assert part in message
    assert "2.00 GiB" in message
    assert "\n" not in message
    assert ("--recompute norm" in message) == (part == TRAINING)
    assert ("--validation_batch_size 1" in message) == (part != TRAINING)


def test_levers_are_those_not_yet_used_in_order() -> None:
    args = tiny_arguments("--train_batch_size 6 --perceptual_scale 1")
    assert levers(args, TRAINING) == [
        "--recompute norm", "--train_batch_size 3 --gradient_accumulation_steps 2",
        "--perceptual_slice_size 1", "--use_8bit_adam", "a smaller --resolution",
    ]  # fmt: skip
    used = "--train_batch_size 2 --disc_norm_type batch --use_8bit_adam --recompute"
    for how, rest in (("norm", ["--recompute full"]), ("full", [])):
        found = levers(tiny_arguments(f"{used} {how}"), TRAINING)
        assert found == [*rest, "a smaller --resolution"]


def test_another_error_is_not_taken_for_a_want_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"), rehearsal.explained(tiny_arguments()):
        raise RuntimeError("shapes do not match")


def fail_in_validation() -> None:
    def fail(*_: Any) -> None:
        raise OUT_OF_MEMORY

    rehearsal.WITHOUT_LIMIT, rehearsal.measure_batch = (), fail


def test_run_that_will_not_fit_ends_with_one_line_before_it_has_done_anything(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    argv = [*TINY, *ADVERSARIAL, "--max_train_steps", "3", "--output_dir", str(folder)]
    code, output = launch(argv, fail_in_validation).wait()
    assert code == 1
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith("train_vae.py: error: the device's memory")
    assert "--validation_batch_size 1" in output
    assert not folder.exists()
