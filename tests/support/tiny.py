"""A run small enough for a test: tiny networks, batches made on the spot, everything on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor

from eval.speed.script import train_on as train
from modules.builders.networks import make_vae
from modules.builders.run import make_run
from modules.config.arguments import Arguments
from modules.config.command_line import resolve_arguments
from modules.models.autoencoder import TrainableVAE
from modules.training.run import Run
from modules.training.schedule import BEGINNING, Reached

RESOLUTION = 32
FLAGS = (
    f"--resolution {RESOLUTION} --block_out_channels 8 8 16 16 --layers_per_block 1 "
    "--norm_num_groups 2 --perceptual_scale 0 --mixed_precision no --report_to none "
    "--disc_type patch --disc_hidden_channels 8 --disc_num_groups 4 --disc_num_layers 2 "
    "--disc_start 0 --disc_warmup_steps 0 --disc_ramp_steps 0 --no_gan_guard --learning_rate 1e-3 "
    "--lr_scheduler constant --disc_lr_scheduler constant --no_use_ema --train_batch_size 2 "
    "--max_train_steps 100 --logging_steps 100 --validation_steps 1000 --checkpointing_steps 1000"
)


def tiny_arguments(flags: str = "") -> Arguments:
    """FLAGS, and what a test adds to them."""
    folder = tempfile.gettempdir()
    return resolve_arguments([*FLAGS.split(), "--output_dir", folder, *flags.split()])


def forget_accelerator() -> None:
    """Accelerate keeps a process's first settings; what comes next in it may have its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def tiny_run(
    flags: str = "", batches: Sequence[dict[str, Any]] = (), reached: Reached = BEGINNING
) -> Run:
    """A run over tiny networks, ready to train on `batches`."""
    forget_accelerator()
    args = tiny_arguments(flags)
    run = make_run(args, TrainableVAE(make_vae(args), args.model.decoder_only), 100, reached)
    run.loader = batches
    return run


def train_without_update(run: Run, batches: Sequence[dict[str, Any]]) -> Run:
    """The script's loop, but gradients stay as the last micro-batch left them."""
    run.update = lambda vae_turn, disc_turn: None
    return train(run, batches)


def batch(
    size: int = 2,
    seed: int = 0,
    shape: tuple[int, int, int] = (4, 4, 4),
    sides: tuple[int, int] = (RESOLUTION, RESOLUTION),
) -> dict[str, Any]:
    """What the loader yields: smooth images [size, 3, *sides] uint8, and noise [size, *shape]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(size, 3, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=sides, mode="bilinear")
    return {
        "images": (images * 255).to(torch.uint8),
        "noise": torch.randn(size, *shape, generator=generator),
        "upscaled": torch.tensor(0),
        "rejected": [],
    }


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of the gradients that are there, by parameter name."""
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of parameters and buffers, by name."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference of any tensor, relative to the norm of all of them."""
    assert ours.keys() == theirs.keys()
    norm = torch.stack([tensor.double().norm() for tensor in theirs.values()]).norm()
    return max(((ours[n].double() - theirs[n].double()).norm() / norm).item() for n in theirs)


def slices(whole: dict[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """The same images and noise in batches of `size`."""
    for images, noise in zip(whole["images"].split(size), whole["noise"].split(size), strict=True):
        yield {**whole, "images": images, "noise": noise}
