"""The VAE's own blocks compute what diffusers' do, with less memory and no more convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from hypothesis import given
from hypothesis import strategies as st
from tiny import batch, tiny_run
from torch.utils._python_dispatch import TorchDispatchMode

from eval.memory.plan import AllocationMeter
from eval.speed.levers import UNDO
from modules.models.lean_blocks import LeanResnetBlock, LeanUpsample, make_lean, upsampling_kernel


def test_lean_blocks_are_diffusers_blocks_to_the_bit_outside_of_training() -> None:
    vae = tiny_run("--vae_init random").raw_vae.vae.eval()
    other = AutoencoderKL.from_config(vae.config).to(memory_format=torch.channels_last)
    other.load_state_dict(vae.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(vae(images).sample, other(images).sample)
    vae.train()
    assert not torch.equal(vae(images).sample, other(images).sample)
    for lean, plain in ((LeanResnetBlock, ResnetBlock2D), (LeanUpsample, Upsample2D)):
        count = sum(isinstance(module, lean) for module in vae.modules())
        assert count == sum(type(module) is plain for module in other.modules()) > 0


@given(
    in_channels=st.integers(1, 4),
    out_channels=st.integers(1, 4),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    bias=st.booleans(),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_upsampling_is_one_transposed_convolution_with_the_same_gradients(
    in_channels: int, out_channels: int, height: int, width: int, bias: bool, layout: Any
) -> None:
    block = Upsample2D(in_channels, True, out_channels=out_channels, bias=bias).double()
    inputs = torch.randn(2, in_channels, height, width, dtype=torch.float64)
    inputs = inputs.to(memory_format=layout).requires_grad_()
    upstream = torch.randn(2, out_channels, 2 * height, 2 * width, dtype=torch.float64)
    block.to(memory_format=layout)
    found = []
    for kind in (Upsample2D, LeanUpsample):
        block.__class__ = kind
        output = block(inputs)
        wanted = (inputs, *block.conv.parameters())
        found.append((output, *torch.autograd.grad(output, wanted, upstream)))
    for plain, lean in zip(*found, strict=True):
        torch.testing.assert_close(lean, plain, rtol=1e-10, atol=1e-10)


def test_training_never_makes_the_larger_picture_that_upsampling_convolves() -> None:
    block = LeanUpsample(8, use_conv=True)
    inputs = torch.randn(1, 8, 32, 32, requires_grad=True)
    picture = inputs.nbytes * 4
    for kind, kept in ((Upsample2D, 2 * picture), (LeanUpsample, picture)):
        block.__class__ = kind
        with AllocationMeter() as meter:
            output = block(inputs)
        assert kept <= meter.now < kept + 16384  # the output, and the kernel
        del output


def test_blocks_that_do_more_than_a_vae_needs_are_left_alone() -> None:
    run = tiny_run()
    for lever in ("no-lean-blocks", "no-lean-upsampling"):
        UNDO[lever](run)
    vae = run.raw_vae.vae
    vae.decoder.mid_block.resnets[0].dropout.p = 0.1
    vae.decoder.up_blocks[0].upsamplers[0].interpolate = False
    make_lean(vae)
    assert type(vae.decoder.mid_block.resnets[0]) is ResnetBlock2D
    assert type(vae.decoder.mid_block.resnets[1]) is LeanResnetBlock
    assert type(vae.decoder.up_blocks[0].upsamplers[0]) is Upsample2D
    assert type(vae.decoder.up_blocks[1].upsamplers[0]) is LeanUpsample


def test_upsampling_adds_its_weights_in_float32_by_the_rules_of_autocast() -> None:
    block = LeanUpsample(16, use_conv=True)
    inputs = torch.randn(2, 16, 4, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        output = block(inputs)
    assert output.dtype == torch.bfloat16
    kernel = upsampling_kernel(block.conv.weight).bfloat16()
    bias = block.conv.bias.bfloat16()
    assert torch.equal(output, F.conv_transpose2d(inputs, kernel, bias, stride=2, padding=1))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_cheap_recomputation_repeats_no_convolution_and_keeps_least(precision: str) -> None:
    convolutions, bytes_kept = [], []
    for how in ("none", "norm", "full"):
        run = tiny_run(f"--recompute {how} --mixed_precision {precision}")
        images, noise = run.to_device(batch())
        with ConvolutionCount() as counter:
            with AllocationMeter() as meter:
                before = meter.now
                reconstructions, _ = run.vae(images, noise)
                bytes_kept.append(meter.now - before)
            reconstructions.sum().backward()
        convolutions.append(counter.count)
    assert convolutions[0] == convolutions[1] < convolutions[2]
    assert bytes_kept[1] < bytes_kept[0] / 1.5


class ConvolutionCount(TorchDispatchMode):
    """How often a convolution is run forward."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        self.count += function is torch.ops.aten.convolution.default
        return function(*args, **(kwargs or {}))
