"""From arguments to networks, optimizers and schedulers: the factories that know the flags."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from diffusers.optimization import get_scheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from modules.config.arguments import Arguments
from modules.config.inputs import ModelArguments
from modules.config.limits import in_steps
from modules.config.optimization import OptimizationArguments
from modules.data.samplers.buckets import bucket_shapes
from modules.errors import ArgumentError, blaming
from modules.models.autoencoder import build_autoencoder, downsample_factor
from modules.models.discriminator import NLayerDiscriminator
from modules.models.lean_blocks import make_lean
from modules.models.lpips import LPIPS, build_lpips
from modules.models.resampler_init import carried, start_as_resampler
from modules.training.schedule import GanSchedule, Reached
from modules.weights.model_config import network_of, require_room
from modules.weights.vae_files import load_vae, warn_of_other_programs

logger = logging.getLogger(__name__)


def training_length(
    args: Arguments, num_train_images: int | None, num_processes: int, reached: Reached
) -> int:
    """Optimizer steps of the run. An epoch's last step is filled from the next epoch."""
    opt = args.optimization
    if opt.max_train_steps is not None:
        return opt.max_train_steps
    left = opt.num_train_epochs * num_train_images - reached.samples
    return reached.step + max(0, math.ceil(left / opt.images_per_step(num_processes)))


def make_perceptual(args: Arguments) -> LPIPS | None:
    """LPIPS, or None with --perceptual_scale 0, which never builds it."""
    if args.losses.perceptual_scale == 0:
        return None
    losses = args.losses
    return build_lpips(
        losses.lpips_backbone, losses.lpips_weights, args.precision.perceptual_slice_size
    )


def make_vae(args: Arguments) -> AutoencoderKL:
    """The VAE to train: pretrained, from a configuration, or from scratch; checked against the run.

    Raises ArgumentError when the resolution or the latent channels do not fit the model.
    """
    torch.manual_seed(args.optimization.seed)
    vae = _load_or_build(args.model, args.data.resolution)
    init = args.model.vae_init
    if init == "resampler" or (init is None and args.model.from_scratch and carried(vae)):
        start_as_resampler(vae)
    factor = downsample_factor(vae)
    args.data.require_divisible(factor, f"{factor}, the downsampling factor of the model")
    if args.data.aspect_ratio_bucketing:
        smallest = bucket_shapes(min(args.data.training_resolutions), factor)
        args.require_sides(min(map(min, smallest)))
    wanted = args.model.latent_channels
    if wanted is not None and wanted != vae.config.latent_channels:
        raise ArgumentError(
            f"--latent_channels={wanted} does not match the model's {vae.config.latent_channels}; "
            "drop the flag, or train from scratch"
        )
    if args.checkpoints.export_ldm:
        warn_of_other_programs(vae.config)
    make_lean(vae, recompute_cheap=args.precision.recomputed == "norm")
    if args.precision.recomputed == "full":
        vae.enable_gradient_checkpointing()
    if args.precision.enable_xformers_memory_efficient_attention:
        _use_xformers(vae)
    # A pretrained one comes in eval mode, in which nothing would be recomputed.
    return vae.train()


def _load_or_build(args: ModelArguments, resolution: int) -> AutoencoderKL:
    if args.pretrained_model_name_or_path:
        return load_vae(
            args.pretrained_model_name_or_path,
            revision=args.revision,
            variant=args.variant,
            cache_dir=args.cache_dir,
            weights=args.pretrained_weights,
        )
    if args.model_config_name_or_path:
        return _from_config(args)
    options = {
        "downsample_factor": args.downsample_factor,
        "latent_channels": args.latent_channels or 4,
        "block_out_channels": args.block_out_channels,
        "layers_per_block": args.layers_per_block,
        "norm_num_groups": args.norm_num_groups,
        "mid_block_add_attention": args.mid_block_add_attention,
        "sample_size": resolution,
    }
    widths = " ".join(map(str, args.block_out_channels or ()))
    with blaming(f"--block_out_channels={widths}", "train a smaller network"), torch.device("meta"):
        require_room(build_autoencoder(**options))
    return build_autoencoder(**options)


def _from_config(args: ModelArguments) -> AutoencoderKL:
    source = args.model_config_name_or_path
    what = f"--model_config_name_or_path={source}"
    try:
        config = AutoencoderKL.load_config(source, cache_dir=args.cache_dir, revision=args.revision)
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"{what} is neither a config.json, nor a folder with "
            f"one, nor a model on the hub that can be reached ({str(error).splitlines()[0]})"
        ) from error
    if not isinstance(config, dict):
        raise ArgumentError(f"{what} is not a JSON object; give a config.json of an AutoencoderKL")
    if config.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise ArgumentError(
            f"{what} describes a {config['_class_name']}; only AutoencoderKL can be trained"
        )
    return AutoencoderKL.from_config(network_of(config, what).config)


def _use_xformers(vae: AutoencoderKL) -> None:
    try:
        vae.enable_xformers_memory_efficient_attention()
    except (ImportError, ModuleNotFoundError, ValueError) as error:
        raise ArgumentError(
            "--enable_xformers_memory_efficient_attention needs xformers and a GPU; drop the flag: "
            f"PyTorch's own attention is as fast ({error})"
        ) from error


def make_discriminator(args: Arguments, accelerator: Accelerator) -> nn.Module:
    """The discriminator, with weights that depend on the seed alone.

    BatchNorm becomes SyncBatchNorm over several processes, which needs GPUs: ArgumentError else.
    """
    disc = args.discriminator
    options = {
        "ndf": disc.disc_hidden_channels,
        "n_layers": disc.disc_num_layers,
        "norm_type": disc.disc_norm_type,
        "num_groups": disc.disc_num_groups,
    }
    what = f"--disc_hidden_channels={disc.disc_hidden_channels}"
    with blaming(what, "train a smaller discriminator"), torch.device("meta"):
        require_room(NLayerDiscriminator(**options))
    torch.manual_seed(args.optimization.seed + 1)
    network = NLayerDiscriminator(**options)
    if disc.disc_norm_type == "batch" and accelerator.num_processes > 1:
        if accelerator.device.type == "cpu":
            raise ArgumentError(
                "--disc_norm_type=batch over several processes needs GPUs (SyncBatchNorm); use "
                "--disc_norm_type=spectral_group"
            )
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return network


def make_gan_schedule(args: Arguments, max_train_steps: int, reached: Reached) -> GanSchedule:
    """When the discriminator trains and when the VAE feels it; says where that is not as asked.

    A share of a run that has become longer or shorter since the GAN began stays what it was.
    """
    disc = args.discriminator
    start, warmup, ramp = (disc.lengths(max_train_steps) | reached.lengths).values()
    asked = GanSchedule(
        enabled=disc.enabled,
        start=start,
        warmup_steps=warmup,
        ramp_steps=ramp,
        in_turns=args.optimization.alternation == "every_other_step",
    )
    schedule = asked.continued(reached)
    if schedule != asked:
        logger.warning(
            "--disc_start=%d is past, and the discriminator has not trained since then: as if it "
            "were %d, so that it has its head start of --disc_warmup_steps", asked.start,
            schedule.start,
        )  # fmt: skip
    return schedule


def make_optimizers(
    args: Arguments, vae: nn.Module, discriminator: nn.Module, num_processes: int
) -> tuple[Optimizer, Optimizer]:
    """AdamW for each network, over the parameters that train."""
    opt = args.optimization
    scale = opt.images_per_step(num_processes) if opt.scale_lr else 1
    betas_vae = (opt.adam_beta1, opt.adam_beta2)
    betas_disc = (
        opt.adam_beta1 if opt.disc_adam_beta1 is None else opt.disc_adam_beta1,
        opt.adam_beta2 if opt.disc_adam_beta2 is None else opt.disc_adam_beta2,
    )
    use_8bit, (rate, disc_rate) = args.precision.use_8bit_adam, args.peak_rates
    return (
        _adamw(opt, vae, rate * scale, betas_vae, use_8bit),
        _adamw(opt, discriminator, disc_rate * scale, betas_disc, use_8bit),
    )


def _adamw(
    opt: OptimizationArguments,
    network: nn.Module,
    lr: float,
    betas: tuple[float, float],
    use_8bit: bool,
) -> Optimizer:
    parameters = [p for p in network.parameters() if p.requires_grad]
    options = {"lr": lr, "betas": betas, "weight_decay": opt.adam_weight_decay,
               "eps": opt.adam_epsilon}  # fmt: skip
    if not use_8bit:
        return torch.optim.AdamW(parameters, fused=True, **options)
    try:
        import bitsandbytes
    except ImportError:
        raise ArgumentError(
            "--use_8bit_adam needs bitsandbytes: `pip install bitsandbytes`, or drop the flag"
        ) from None
    return bitsandbytes.optim.AdamW8bit(parameters, **options)


def make_schedulers(
    args: Arguments,
    optimizer_vae: Optimizer,
    optimizer_disc: Optimizer,
    schedule: GanSchedule,
    max_train_steps: int,
    reached: Reached,
) -> tuple[LRScheduler, LRScheduler]:
    """Learning-rate schedules, each as long as the updates that its network has had and will get.

    They begin at 0: a checkpoint puts them where it was.
    """
    opt = args.optimization

    def scheduler(name: str, optimizer: Optimizer, updates: int) -> LRScheduler:
        return get_scheduler(
            name,
            optimizer,
            num_warmup_steps=in_steps(opt.lr_warmup_steps, updates),
            num_training_steps=updates,
            num_cycles=opt.lr_num_cycles,
            power=opt.lr_power,
        )

    def length(updates: Callable[[int], int], had: int | None) -> int:
        scheduled = updates(reached.step)
        return (scheduled if had is None else had) + updates(max_train_steps) - scheduled

    vae_updates = length(schedule.vae_updates, reached.vae_updates)
    disc_updates = length(schedule.discriminator_updates, reached.disc_updates)
    return (
        scheduler(opt.lr_scheduler, optimizer_vae, vae_updates),
        scheduler(opt.disc_lr_scheduler, optimizer_disc, disc_updates),
    )
