"""The VAE's own blocks compute what diffusers' do, with less memory and no more convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from tiny import batch, tiny_run
from torch.utils._python_dispatch import TorchDispatchMode

from eval.fake_run import cuda_autocast
from eval.levers import undo_lean_blocks
from eval.memory_plan import AllocationMeter
from modules.lean_blocks import LeanResnetBlock, LeanUpsample, make_lean


def test_lean_blocks_are_diffusers_blocks_to_the_bit() -> None:
    vae = tiny_run().raw_vae.vae
    other = AutoencoderKL.from_config(vae.config).to(memory_format=torch.channels_last)
    other.load_state_dict(vae.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(vae(images).sample, other(images).sample)
    for lean, plain in ((LeanResnetBlock, ResnetBlock2D), (LeanUpsample, Upsample2D)):
        count = sum(isinstance(module, lean) for module in vae.modules())
        assert count == sum(type(module) is plain for module in other.modules()) > 0


def test_blocks_that_do_more_than_a_vae_needs_are_left_alone() -> None:
    run = tiny_run()
    undo_lean_blocks(run)
    vae = run.raw_vae.vae
    vae.decoder.mid_block.resnets[0].dropout.p = 0.1
    vae.decoder.up_blocks[0].upsamplers[0].interpolate = False
    make_lean(vae)
    assert type(vae.decoder.mid_block.resnets[0]) is ResnetBlock2D
    assert type(vae.decoder.mid_block.resnets[1]) is LeanResnetBlock
    assert type(vae.decoder.up_blocks[0].upsamplers[0]) is Upsample2D
    assert type(vae.decoder.up_blocks[1].upsamplers[0]) is LeanUpsample


def test_upsampling_stays_in_low_precision_by_the_rules_of_cuda_and_is_exact() -> None:
    seen, found = [], []
    for plain in (False, True):
        run = tiny_run()
        if plain:
            undo_lean_blocks(run)
        block = run.raw_vae.vae.decoder.up_blocks[0].upsamplers[0]
        block.conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
        inputs = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
        with cuda_autocast(), torch.autocast("cpu", torch.bfloat16):
            found.append(block(inputs))
    assert seen == [torch.bfloat16, torch.float32]
    assert torch.equal(*found)


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
