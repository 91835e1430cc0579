"""GroupNorm and SiLU in one are the two of PyTorch, in values, gradients and in eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import (
    batch,
    gradients,
    largest_difference,
    tiny_run,
    train_without_update,
    weights,
)

from eval.memory.fake_run import NormSiLUKernels
from eval.speed.levers import UNDO
from modules.models import norm_silu
from modules.models.norm_silu import GroupNormSiLU, can_fuse, fuse_norms
from modules.training.run import Run

pytest.importorskip("triton")  # comes with PyTorch on Linux


def picture(*shape: int, dtype: torch.dtype = torch.float32, mean: float = 0.0) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + mean
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


@settings(max_examples=12)
@given(
    images=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    width=st.integers(1, 5),
    sides=st.tuples(st.integers(2, 40), st.integers(1, 9)),
    mean=st.sampled_from([0.0, 100.0]),
)
def test_values_and_gradients_are_those_of_the_two(
    images: int, groups: int, width: int, sides: tuple[int, int], mean: float
) -> None:
    channels = groups * width
    both = GroupNormSiLU(groups, channels, eps=1e-3)
    torch.nn.init.normal_(both.weight)
    torch.nn.init.normal_(both.bias)
    inputs = picture(images, channels, *sides, mean=mean).requires_grad_()
    upstream = picture(images, channels, *sides).flip(0)
    output = both(inputs)
    found = torch.autograd.grad(output, (inputs, both.weight, both.bias), upstream)
    exact = [t.detach().double().requires_grad_() for t in (inputs, both.weight, both.bias)]
    expected = F.silu(F.group_norm(exact[0], groups, *exact[1:], eps=1e-3))
    for ours, theirs in zip(
        (output, *found),
        (expected, *torch.autograd.grad(expected, exact, upstream.double())),
        strict=True,
    ):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("place", [0, 128])
def test_a_pixel_unlike_all_others_makes_no_nan_and_in_a_corner_costs_no_digits(
    noise: float, place: int
) -> None:
    inputs = picture(1, 2, 256, 256) * noise + 1000
    inputs[:, :, place, place] = 0
    ones = torch.ones(2)
    output = GroupNormSiLU(1, 2, eps=1e-6)(inputs)
    assert output.isfinite().all()
    if place == 0:
        exact = F.silu(F.group_norm(inputs.double(), 1, ones.double(), 0 * ones.double(), 1e-6))
        torch.testing.assert_close(output.double(), exact, rtol=1e-4, atol=1e-4)


def test_a_group_may_have_more_than_2_to_the_31_numbers() -> None:
    kernels, pixels, channels = norm_silu.kernels(), 2**22, 512
    ones, means, by_channel = torch.ones(2, channels), torch.empty(2), torch.empty(2, channels)
    kernels._means_of_gradient[(1, 1)](
        ones, ones, by_channel, means, pixels, 1, C=channels, D=channels, D2=channels, R=32
    )
    assert means.tolist() == [1 / pixels] * 2


def test_a_vae_with_fused_norms_has_the_same_gradients_and_can_be_parted_again() -> None:
    given, flags = [batch(size=1)], "--recompute norm"
    plain = gradients(train_without_update(tiny_run(flags), given).raw_vae.vae)
    for lever, kinds in ((None, {GroupNormSiLU}), ("no-fused-norms", {torch.nn.GroupNorm})):
        run = fused(flags)
        if lever:
            UNDO[lever](run)
        assert {type(block) for block in norms_before_silu(run)} == kinds
        found = gradients(train_without_update(run, given).raw_vae.vae)
        assert largest_difference(found, plain) < 1e-5


def test_a_network_of_another_activation_is_left_as_it_is(tmp_path: Path) -> None:
    AutoencoderKL(norm_num_groups=2, block_out_channels=(4,), act_fn="gelu").save_pretrained(
        tmp_path
    )
    run = tiny_run(f"--pretrained_model_name_or_path {tmp_path}")
    assert not fuse_norms(run.raw_vae.vae)
    for undo in (lambda run: None, UNDO["no-fused-norms"]):
        undo(run)
        acts = {type(m.nonlinearity) for m in run.raw_vae.modules() if hasattr(m, "nonlinearity")}
        assert acts == {torch.nn.GELU}
        assert not any(isinstance(module, GroupNormSiLU) for module in run.raw_vae.modules())


def fused(flags: str = "") -> Run:
    run = tiny_run(flags)
    assert fuse_norms(run.raw_vae.vae)
    return run


def norms_before_silu(run: Run) -> list[torch.nn.Module]:
    vae = run.raw_vae.vae
    return [m for name, m in vae.named_modules() if "norm" in name and "attentions" not in name]


def test_in_eval_mode_it_is_diffusers_to_the_bit_with_the_same_names() -> None:
    plain, ours = tiny_run().raw_vae.vae.eval(), fused().raw_vae.vae.eval()
    assert torch.equal(ours(batch_images()).sample, plain(batch_images()).sample)
    assert weights(ours).keys() == weights(plain).keys()


def batch_images() -> torch.Tensor:
    return batch()["images"] / 127.5 - 1


def test_under_autocast_the_output_has_the_precision_of_the_next_convolution() -> None:
    norm = GroupNormSiLU(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        output = norm(picture(1, 4, 3, 3).requires_grad_())
    assert output.dtype == torch.bfloat16
    assert output.is_contiguous(memory_format=torch.channels_last)
    narrow = picture(1, 4, 3, 3, dtype=torch.float16)
    affine = norm.weight.detach(), norm.bias.detach()
    # What the prediction of memory counts is what there is.
    for kernels in (norm_silu.kernels(), NormSiLUKernels):
        forth, moments = kernels.forward(narrow, *affine, 2, 1e-6, torch.float16)
        back = kernels.backward(forth, narrow, moments, *affine)
        made = [(t.shape, t.dtype, t.stride()) for t in (forth, moments, *back)]
        assert made[0] == made[2] == (narrow.shape, torch.float16, narrow.stride())
        assert made[1][:2] == ((1, 2, 2), torch.float32)
        assert made[3][:2] == ((2, 4), torch.float32)


def test_kernels_are_launched_on_the_gpu_that_holds_the_picture(monkeypatch) -> None:
    """Triton takes the current one: cuda:0, even where ACCELERATE_TORCH_DEVICE is cuda:1."""
    inputs, launch = picture(1, 4, 3, 3), norm_silu.kernels().forward
    current, launched = [], []

    @contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        current.append(tensor.data_ptr())
        yield
        current.pop()

    def launch_and_note(*arguments: Any) -> Any:
        launched.extend(current)
        return launch(*arguments)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(norm_silu.kernels(), "forward", launch_and_note)
    GroupNormSiLU(2, 4)(inputs)
    assert launched == [inputs.data_ptr()]


def test_where_one_process_cannot_fuse_none_does_and_says_why(monkeypatch, caplog) -> None:
    monkeypatch.setattr(norm_silu, "_failure", lambda device: None)
    assert can_fuse(torch.device("cuda"))
    monkeypatch.setattr(norm_silu, "gather_from_processes", lambda own: [*own, "no gcc there"])
    assert not can_fuse(torch.device("cuda"))
    assert "no gcc there" in caplog.text


def test_where_triton_does_not_work_a_gpu_is_told_how_to_get_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert norm_silu._failure(torch.device("cpu")) is None  # with the tests' interpreter
    assert not can_fuse(torch.device("cpu"))
    assert not caplog.text
    assert not can_fuse(torch.device("cuda", 99))  # there are not so many
    assert "GroupNorm and SiLU run apart" in caplog.text
    assert "triton-windows" in caplog.text
