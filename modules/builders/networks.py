"""From flags to networks: the VAE, the discriminator, and LPIPS, checked against the run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import nn

from modules.config.arguments import Arguments
from modules.config.inputs import ModelArguments
from modules.data.samplers.buckets import bucket_shapes
from modules.errors import ArgumentError, blaming
from modules.image_modes import CHANNELS, mode_of
from modules.models.autoencoder import build_autoencoder, downsample_factor
from modules.models.discriminator import Discriminator, NLayerDiscriminator
from modules.models.feature_discriminator import FeatureDiscriminator
from modules.models.lean_blocks import make_lean
from modules.models.lpips import LPIPS, WIDTHS, build_lpips
from modules.models.resampler_init import carried, start_as_resampler
from modules.weights.model_config import network_of, require_room
from modules.weights.vae_files import load_vae, warn_of_other_programs


def make_perceptual(args: Arguments) -> LPIPS | None:
    """LPIPS, or None with --perceptual_scale 0, which never builds it."""
    return open_lpips(args) if args.losses.perceptual_scale > 0 else None


def open_lpips(args: Arguments) -> LPIPS:
    """LPIPS as the flags say, whoever looks through it. Raises ArgumentError, naming the flag."""
    losses, size = args.losses, args.precision.perceptual_slice_size
    return build_lpips(losses.lpips_backbone, losses.lpips_weights, size)


def make_vae(args: Arguments) -> AutoencoderKL:
    """The VAE to train: pretrained, from a configuration, or from scratch; checked against the run.

    Raises ArgumentError when the resolution or the latent channels do not fit the model.
    """
    torch.manual_seed(args.optimization.seed)
    vae = _load_or_build(args.model, args.data.resolution)
    mode, asked = mode_of(vae), args.model.image_mode or mode_of(vae)
    if asked != mode:
        raise ArgumentError(
            f"--image_mode={asked} means {CHANNELS[asked]} channels, and the model's images are "
            f"{mode}, with {CHANNELS[mode]}; drop the flag, or train from scratch"
        )
    init = args.model.vae_init
    if init == "resampler" or (init is None and args.model.from_scratch and carried(vae)):
        start_as_resampler(vae)
    factor = downsample_factor(vae)
    args.data.require_divisible(factor, f"{factor}, the downsampling factor of the model")
    narrowest = None
    if args.data.aspect_ratio_bucketing:
        smallest = bucket_shapes(min(args.data.training_resolutions), factor)
        narrowest = min(map(min, smallest))
        args.require_sides(narrowest)
    args.require_scales(factor, narrowest)
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
        "image_channels": CHANNELS[args.image_mode or "RGB"],
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


def make_discriminator(
    args: Arguments,
    accelerator: Accelerator,
    image_channels: int = 3,
    perceptual: LPIPS | None = None,
) -> Discriminator:
    """The discriminator of such images, with weights that depend on the seed alone.

    perceptual: what --disc_type=features looks through; without it that is read here.
    BatchNorm becomes SyncBatchNorm over several processes, which needs GPUs: ArgumentError else.
    """
    disc = args.discriminator
    build: Callable[..., Discriminator]
    options = {"norm_type": disc.disc_norm_type, "num_groups": disc.disc_num_groups}
    if args.disc_type == "features":  # also without a GAN, which a resumed run may turn on or off
        if perceptual is None and disc.enabled:
            perceptual = open_lpips(args)
        channels = WIDTHS[args.losses.lpips_backbone]
        build = partial(
            FeatureDiscriminator, perceptual, channels, disc.disc_hidden_channels, **options
        )
    else:
        build = partial(
            NLayerDiscriminator,
            image_channels,
            disc.disc_hidden_channels,
            disc.disc_num_layers,
            **options,
        )
    what = f"--disc_hidden_channels={disc.disc_hidden_channels}"
    counted = disc.disc_norm_type.removeprefix("spectral_")  # whose iterations are slow on meta
    with blaming(what, "train a smaller discriminator"), torch.device("meta"):
        require_room(build(norm_type=counted))
    torch.manual_seed(args.optimization.seed + 1)
    network = build()
    if disc.disc_norm_type == "batch" and accelerator.num_processes > 1:
        if accelerator.device.type == "cpu":
            raise ArgumentError(
                "--disc_norm_type=batch over several processes needs GPUs (SyncBatchNorm); use "
                "--disc_norm_type=spectral_group"
            )
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return network
