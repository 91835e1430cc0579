"""Every flag, its default and its rules: frozen dataclasses, one for each group of `--help`.

Only the script and the factories it calls see these objects; everything else takes plain values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import PurePath
from typing import Any

from modules.errors import ArgumentError
from modules.limits import Limits, check_limits, shown
from modules.smallest_sides import LPIPS, SSIM_WINDOW, discriminator_side, require_side

# Never written to train_config.yaml: secrets, and what describes this launch rather than the run.
LAUNCH_ONLY = ("hub_token", "resume_from_checkpoint", "overwrite_output_dir", "dry_run")


def flag(
    default: Any,
    help: str,
    choices: Sequence[Any] | None = None,
    **limits: Any,
) -> Any:
    """A dataclass field whose default, help and choices become the command line's.

    limits: those of `Limits`, which every value keeps to.
    """
    metadata = {"help": help, "choices": choices}
    metadata["limits"] = Limits(**limits)
    return field(default=default, metadata=metadata)


def require(condition: bool, name: str, value: object, rule: str) -> None:
    """Raises ArgumentError("--name=value rule") unless `condition` holds."""
    if not condition:
        raise ArgumentError(f"--{name}={shown(value)} {rule}")


@dataclass(frozen=True)
class ModelArguments:
    """Model"""

    pretrained_model_name_or_path: str | None = flag(
        None,
        "VAE to fine-tune: a hub id, a VAE's folder, a pipeline's folder with vae/, or one "
        ".safetensors or .ckpt file in latent-diffusion's layout",
        path=True,
    )
    model_config_name_or_path: str | None = flag(
        None,
        "hub id, folder or config.json of an AutoencoderKL to build with random weights",
        path=True,
    )
    revision: str | None = flag(None, "branch, tag or commit of the pretrained model on the hub")
    variant: str | None = flag(None, 'weights variant to load, such as "fp16"')
    pretrained_weights: str = flag(
        "auto",
        "which weights of a checkpoint that holds both: raw as trained, ema their average, auto "
        "the average where there is one",
        choices=("auto", "raw", "ema"),
    )
    cache_dir: str | None = flag(None, "where downloaded models and datasets are kept", path=True)
    downsample_factor: int = flag(
        8, "image side over latent side of a VAE from scratch", choices=(4, 8, 16, 32)
    )
    latent_channels: int | None = flag(
        None,
        "channels C of the latent; from scratch 4, else it must match the pretrained model",
        minimum=1,
        maximum=4096,
    )
    block_out_channels: tuple[int, ...] | None = flag(
        None,
        "width of each level from scratch; by default latent-diffusion's for the factor",
        minimum=1,
        maximum=16384,
    )
    layers_per_block: int = flag(
        2, "residual blocks of each level, from scratch", minimum=1, maximum=32
    )
    norm_num_groups: int | None = flag(
        None,
        "groups of each GroupNorm, from scratch; by default 32, or fewer so that a group keeps at "
        "least 4 channels (a group of one channel erases that channel's mean, which is colour)",
        minimum=1,
        maximum=16384,
    )
    mid_block_add_attention: bool = flag(True, "self-attention at the lowest level, from scratch")
    vae_init: str = flag(
        "random",
        "weights of a VAE from scratch: random, or resampler, which starts as a linear down- and "
        "upsampler and saves a small network its first thousands of steps",
        choices=("random", "resampler"),
    )
    decoder_only: bool = flag(
        False,
        "train the decoder alone; encoder, quant_conv and scaling factor stay bit-identical, so "
        "latents remain compatible with existing diffusion models",
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if self.pretrained_model_name_or_path and self.model_config_name_or_path:
            raise ArgumentError(
                "--pretrained_model_name_or_path and --model_config_name_or_path exclude each "
                "other: give weights to fine-tune, or a configuration to start from scratch"
            )
        if self.decoder_only and not self.pretrained_model_name_or_path:
            raise ArgumentError(
                "--decoder_only needs --pretrained_model_name_or_path: a random frozen encoder "
                "would never learn"
            )
        if self.vae_init != "random" and self.pretrained_model_name_or_path:
            raise ArgumentError(
                f"--vae_init={self.vae_init} is for a VAE from scratch; drop it, or "
                "--pretrained_model_name_or_path"
            )
        if self.pretrained_weights != "auto" and not self.pretrained_model_name_or_path:
            raise ArgumentError(
                f"--pretrained_weights={self.pretrained_weights} needs "
                "--pretrained_model_name_or_path, whose weights it chooses; drop it"
            )
        if self.block_out_channels is not None:
            levels = self.downsample_factor.bit_length()
            require(
                len(self.block_out_channels) == levels,
                "block_out_channels",
                " ".join(map(str, self.block_out_channels)),
                f"must list {levels} widths for --downsample_factor={self.downsample_factor} "
                "(log2 of the factor, plus 1)",
            )
            groups = self.norm_num_groups or 1
            for width in self.block_out_channels:
                require(
                    width % groups == 0,
                    "norm_num_groups",
                    groups,
                    f"must divide every width of --block_out_channels, also {width}",
                )


@dataclass(frozen=True)
class DataArguments:
    """Data"""

    dataset_name: tuple[str, ...] | None = flag(
        None,
        'hub id or local folder of a dataset, or several that are mixed; "synthetic" (also when '
        "neither this nor --train_data_dir is given) is the built-in procedural set",
        path=True,
    )
    dataset_weights: tuple[float, ...] | None = flag(
        None,
        "share of each --dataset_name in the samples, in any unit; by default every image comes "
        "once in an epoch. An epoch stays as long as all the images together",
        minimum=1e-9,
    )
    dataset_config_name: str | None = flag(None, "configuration of the dataset, if it has several")
    data_files: tuple[str, ...] | None = flag(
        None, "files or globs of the dataset to use", path=True
    )
    train_data_dir: str | None = flag(
        None, "folder with the training images, searched recursively", path=True
    )
    train_split: str = flag(
        "train",
        "split of every --dataset_name to train on; without --streaming also a part of it, "
        "train[:90%], or several, train+extra",
    )
    image_column: str = flag(
        "image",
        "column that holds the images, the same in every --dataset_name; of webdataset shards, the "
        "ending of the members, for which other image formats stand in",
    )
    max_train_samples: int | None = flag(
        None, "use a random subset of this many training images", minimum=1
    )
    streaming: bool = flag(False, "read the dataset as a stream instead of downloading it first")
    shuffle_buffer_size: int = flag(
        1000,
        "images in the shuffle of --streaming, kept encoded: those of all lanes together, in all "
        "processes and workers, so that each lane shuffles its own in blocks of a share of this",
        minimum=1,
        maximum=10**9,
    )
    stream_lanes: int | None = flag(
        None,
        "sequences that --streaming reads apart from each other, each from its own shards, taking "
        "turns sample by sample; by default 64, or as many as there are shards. Every byte is read "
        "once where processes x workers divide this. It decides the order of the samples, so it "
        "is kept on resume",
        minimum=1,
        maximum=65536,
    )
    resolution: int = flag(
        512, "side of the square training and validation crops, in pixels", minimum=8, maximum=16384
    )
    train_resolutions: tuple[int, ...] | None = flag(
        None,
        "train on several resolutions: each batch draws one of these, on all processes the same; "
        "one named twice is drawn twice as often, and the largest decides the memory. --resolution "
        "then is that of validation alone and need not be among them",
        minimum=8,
        maximum=16384,
    )
    aspect_ratio_bucketing: bool = flag(
        False,
        "train on pictures in nearly their own shape, from 1:2 to 2:1, in an area of at most "
        "resolution x resolution: each batch has one shape, and the last one of each shape in an "
        "epoch is filled with pictures of that shape again. Sizes are read from the headers at "
        "the first start and kept in the cache folder",
    )
    crop: str = flag(
        "random", "which part of the resized image to train on", choices=("random", "center")
    )
    random_flip: bool = flag(True, "mirror half of the training images")
    interpolation: str = flag(
        "lanczos", "filter for resizing training images", choices=("lanczos", "bicubic")
    )
    min_image_size: int | None = flag(
        None,
        "drop training images whose shorter side is smaller; others are upsampled and counted",
        minimum=1,
        maximum=10**6,
    )
    fast_jpeg_decoding: bool = flag(
        False,
        "decode JPEGs at 1/2, 1/4 or 1/8 where 1.5 times the crop's size is left: 2 to 3 times as "
        "fast, but the finest detail is 7 to 12 % weaker than in evaluation, which decodes all",
    )
    max_bad_images: float = flag(
        0.01,
        "stop when more than this fraction of the training images cannot be read",
        minimum=0,
        maximum=1,
    )
    dataloader_num_workers: int = flag(
        0, "processes that load images; 0 is the main process", minimum=0, maximum=1024
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if self.streaming and self.aspect_ratio_bucketing:
            raise ArgumentError(
                "--aspect_ratio_bucketing cannot be used with --streaming: a stream does not tell "
                "the sizes of its images; drop one, or use --train_resolutions"
            )
        if self.streaming and not self.dataset_name:
            raise ArgumentError("--streaming needs --dataset_name: folders are read directly")
        if self.streaming and self.max_train_samples:
            raise ArgumentError("--max_train_samples cannot be used with --streaming; drop one")
        self._check_mixture()

    def _check_mixture(self) -> None:
        names, weights = self.dataset_name or (), self.dataset_weights
        if set(names) <= {"synthetic"}:
            for option, value in (
                ("dataset_config_name", self.dataset_config_name),
                ("data_files", " ".join(self.data_files or ())),
            ):
                require(not value, option, value, "needs the --dataset_name that it belongs to")
            require(not (names and self.train_data_dir), "train_data_dir", self.train_data_dir,
                    "is not read with --dataset_name=synthetic; drop one of the two")  # fmt: skip
        for option in ("dataset_config_name", "data_files", "train_data_dir"):
            if len(names) > 1 and getattr(self, option):
                raise ArgumentError(
                    f"--{option} cannot be used with several --dataset_name: it would mean all of "
                    "them; drop it, or give each dataset a folder of its own"
                )
        if weights is None:
            if self.streaming and len(names) > 1:
                raise ArgumentError(
                    "--streaming with several --dataset_name needs --dataset_weights: a stream "
                    "does not say how many images it has"
                )
            return
        text = " ".join(f"{weight:g}" for weight in weights)
        require(len(weights) == len(names), "dataset_weights", text,
                f"must be {len(names)} numbers, one for each --dataset_name")  # fmt: skip

    @property
    def training_resolutions(self) -> tuple[int, ...]:
        """Those that a batch may have."""
        return self.train_resolutions or (self.resolution,)

    @property
    def several_shapes(self) -> bool:
        """Whether batches differ in shape."""
        return self.aspect_ratio_bucketing or len(set(self.training_resolutions)) > 1

    def require_divisible(self, factor: int, whose: str) -> None:
        """Every resolution must be a multiple of the downsampling factor, named as `whose`."""
        for name, resolutions in (
            ("resolution", (self.resolution,)),
            ("train_resolutions", self.train_resolutions or ()),
        ):
            for resolution in resolutions:
                require(
                    resolution % factor == 0,
                    name,
                    resolution,
                    f"must be divisible by {whose}; try {nearest_multiple(resolution, factor)}",
                )


@dataclass(frozen=True)
class LossArguments:
    """Losses"""

    rec_loss: str = flag("l2", "pixel error, mean over all elements", choices=("l1", "l2"))
    kl_scale: float = flag(
        1e-6,
        "weight of the KL (per-image sum over the pixels' number), as in latent-diffusion",
        minimum=0,
        maximum=10**6,
    )
    perceptual_scale: float = flag(
        0.5, "weight of LPIPS (mean over the batch); 0 never builds it", minimum=0, maximum=10**6
    )
    lpips_backbone: str = flag(
        "vgg", "network under LPIPS in training and validation", choices=("vgg", "alex", "squeeze")
    )
    lpips_weights: str | None = flag(
        None,
        "local file with torchvision's weights of that network, instead of a download",
        path=True,
    )

    def __post_init__(self) -> None:
        check_limits(self)


@dataclass(frozen=True)
class DiscriminatorArguments:
    """Discriminator"""

    disc_start: int = flag(50001, "optimizer step from which the discriminator trains", minimum=0)
    disc_warmup_steps: int = flag(
        500,
        "steps the discriminator trains alone before the VAE feels it; 0 starts both at once",
        minimum=0,
    )
    disc_ramp_steps: int = flag(
        500, "steps over which the adversarial term then grows to full", minimum=0
    )
    disc_factor: float = flag(
        1.0, "factor on the adversarial term; 0 turns the GAN off", minimum=0, maximum=10**6
    )
    disc_scale: float = flag(
        1.0, "weight of the adversarial term, beside the adaptive weight", minimum=0, maximum=10**6
    )
    disc_loss: str = flag("hinge", "loss of the discriminator", choices=("hinge", "vanilla"))
    disc_adaptive_weight: bool = flag(
        True,
        "balance the adversarial gradient against the reconstruction's at the last layer, for each "
        "micro-batch; off, --disc_scale alone weighs it (against the per-element mean loss)",
    )
    disc_weight_max: float = flag(
        1e4,
        "clamp of the adaptive weight, in latent-diffusion's convention (summed loss)",
        minimum=0,
    )
    gan_guard: bool = flag(
        False,
        "halve the adversarial term at every log point while the adaptive weight sits on its clamp "
        "or the discriminator's logits explode, and double it again afterwards; without this only "
        "a warning and train/gan_alarm tell",
    )
    disc_norm_type: str = flag(
        "spectral_group",
        "normalisation in the discriminator; batch needs 2 images per device",
        choices=("spectral", "spectral_group", "batch", "group", "none"),
    )
    disc_hidden_channels: int = flag(
        64, "width of the discriminator's first layer (ndf)", minimum=1, maximum=4096
    )
    disc_num_layers: int = flag(
        3, "stride-2 layers of the discriminator (n_layers)", minimum=1, maximum=10
    )
    disc_num_groups: int = flag(
        32, "groups of the discriminator's GroupNorm", minimum=1, maximum=32768
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if "group" in self.disc_norm_type:
            require(
                self.disc_hidden_channels * 2 % self.disc_num_groups == 0,
                "disc_num_groups",
                self.disc_num_groups,
                f"must divide twice --disc_hidden_channels={self.disc_hidden_channels}",
            )

    @property
    def enabled(self) -> bool:
        """Whether the adversarial term can ever count."""
        return self.disc_factor > 0 and self.disc_scale > 0


@dataclass(frozen=True)
class OptimizationArguments:
    """Optimization"""

    seed: int = flag(0, "seed of weights, order, crops and noise", minimum=0, maximum=2**63 - 2)
    train_batch_size: int = flag(4, "images per device and micro-batch", minimum=1, maximum=65536)
    gradient_accumulation_steps: int = flag(
        1, "micro-batches per optimizer step", minimum=1, maximum=10**6
    )
    num_train_epochs: int = flag(
        1, "passes over the data, unless --max_train_steps is given", minimum=1, maximum=10**9
    )
    max_train_steps: int | None = flag(None, "optimizer steps in all", minimum=0)
    learning_rate: float = flag(4.5e-6, "peak learning rate of the VAE", minimum=0, maximum=10**6)
    disc_learning_rate: float = flag(
        4.5e-6, "peak learning rate of the discriminator", minimum=0, maximum=10**6
    )
    scale_lr: bool = flag(
        False, "multiply both learning rates by accumulation x processes x batch size"
    )
    lr_scheduler: str = flag(
        "constant",
        "schedule of the VAE's learning rate",
        choices=("linear", "cosine", "cosine_with_restarts", "polynomial", "constant",
                 "constant_with_warmup"),
    )  # fmt: skip
    disc_lr_scheduler: str = flag(
        "constant",
        "schedule of the discriminator's, over the updates that it gets",
        choices=("linear", "cosine", "cosine_with_restarts", "polynomial", "constant",
                 "constant_with_warmup"),
    )  # fmt: skip
    lr_warmup_steps: int = flag(
        500,
        "updates over which each learning rate rises from 0; the schedule constant has none",
        minimum=0,
    )
    lr_num_cycles: int = flag(1, "restarts of cosine_with_restarts", minimum=1, maximum=10**6)
    lr_power: float = flag(1.0, "power of the polynomial schedule", minimum=0, maximum=100)
    adam_beta1: float = flag(0.9, "AdamW's beta1, both networks", minimum=0, below=1)
    adam_beta2: float = flag(0.999, "AdamW's beta2, both networks", minimum=0, below=1)
    disc_adam_beta1: float | None = flag(
        None, "beta1 for the discriminator, if another", minimum=0, below=1
    )
    disc_adam_beta2: float | None = flag(
        None, "beta2 for the discriminator, if another", minimum=0, below=1
    )
    adam_weight_decay: float = flag(1e-2, "AdamW's decoupled weight decay", minimum=0, maximum=1000)
    adam_epsilon: float = flag(1e-8, "AdamW's epsilon", minimum=1e-30, maximum=1)
    max_grad_norm: float = flag(
        1.0, "clip each network's gradient to this norm; 0 never clips", minimum=0
    )
    alternation: str = flag(
        "every_step",
        "update both networks at every step, or in turns as diffusers' script does",
        choices=("every_step", "every_other_step"),
    )
    use_ema: bool = flag(False, "average the VAE's weights; the average is validated and exported")
    ema_decay: float = flag(
        0.9999, "decay of the average, approached as (1 + n) / (10 + n)", minimum=0, below=1
    )
    max_skipped_steps: int = flag(
        10,
        "stop after this many updates in a row were skipped because a number was not finite",
        minimum=1,
    )

    def __post_init__(self) -> None:
        check_limits(self)

    def images_per_step(self, num_processes: int) -> int:
        """Images of one optimizer step over all processes: the total batch size."""
        return self.train_batch_size * self.gradient_accumulation_steps * num_processes


@dataclass(frozen=True)
class PrecisionArguments:
    """Precision and memory"""

    mixed_precision: str | None = flag(
        None,
        "autocast of the networks; weights, losses and EMA stay float32. By default accelerate's "
        "configuration decides",
        choices=("no", "fp16", "bf16"),
    )
    allow_tf32: bool = flag(False, "TensorFloat-32 matrix products on Ampere and later GPUs")
    gradient_checkpointing: bool = flag(False, "the same as --recompute full")
    recompute: str = flag(
        "none",
        "what the backward pass computes again instead of keeping it: norm (normalisation and "
        "activation: cheap, and enough for most of the saving) or full (every block)",
        choices=("none", "norm", "full"),
    )
    compile: bool = flag(
        False,
        "compile the networks' blocks: minutes at the start, faster steps afterwards; for any "
        "shape, where batches have several",
    )
    perceptual_slice_size: int | None = flag(
        None,
        "images that LPIPS looks at together; fewer need less memory; by default all",
        minimum=1,
        maximum=65536,
    )
    deterministic: bool = flag(
        False,
        "use only GPU kernels that give the same bits every time, slower: the same seed and number "
        "of processes then repeat a run exactly, as they do on the CPU in any case",
    )
    ddp_timeout: float = flag(
        1800,
        "seconds that processes wait for one of them before the run ends with an error",
        above=0,
        maximum=365 * 86400,
    )
    memory_limit_gb: float | None = flag(
        None,
        "most memory PyTorch may take on each GPU: shows whether a run fits a smaller card",
        above=0,
        maximum=10**4,
    )
    set_grads_to_none: bool = flag(True, "free gradients after each update instead of zeroing them")
    use_8bit_adam: bool = flag(False, "bitsandbytes' 8-bit AdamW (its package must be installed)")
    enable_xformers_memory_efficient_attention: bool = flag(
        False, "xformers' attention instead of PyTorch's (its package must be installed)"
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if self.gradient_checkpointing and self.recompute == "norm":
            raise ArgumentError(
                "--gradient_checkpointing means --recompute=full; drop one of the two"
            )

    @property
    def recomputed(self) -> str:
        """ "none", "norm" or "full", whichever of the two flags said so."""
        return "full" if self.gradient_checkpointing else self.recompute


@dataclass(frozen=True)
class ValidationArguments:
    """Validation"""

    validation_image: tuple[str, ...] | None = flag(None, "image files to validate on", path=True)
    validation_data_dir: str | None = flag(None, "folder of images to validate on", path=True)
    validation_split: str | None = flag(None, "split of --dataset_name to validate on")
    num_validation_images: int | None = flag(
        None,
        "images held back from the training set where no others are given (64), or the most to use "
        "of those given (all); 0 validates nothing",
        minimum=0,
    )
    validation_steps: int = flag(100, "optimizer steps between validations", minimum=1)
    validation_batch_size: int | None = flag(
        None,
        "images per device and batch in validation; by default as many as have the pixels of a "
        "training micro-batch, up to 8, which then needs more memory than they",
        minimum=1,
        maximum=65536,
    )
    num_grid_images: int = flag(
        8,
        "validation images drawn into each picture of samples/, which keeps about 100 pictures",
        minimum=0,
        maximum=10**4,
    )
    best_metric: str = flag(
        "psnr", "what keeps the best weights in best/", choices=("psnr", "ssim", "lpips")
    )

    def __post_init__(self) -> None:
        check_limits(self)
        given = [
            f"--{name}"
            for name in ("validation_image", "validation_data_dir", "validation_split")
            if getattr(self, name)
        ]
        if len(given) > 1:
            raise ArgumentError(f"{' and '.join(given)} exclude each other; keep one")


@dataclass(frozen=True)
class CheckpointArguments:
    """Checkpoints"""

    output_dir: str = flag("autoencoderkl-model", "where everything is written", path=True)
    overwrite_output_dir: bool = flag(False, "delete what an earlier run left in --output_dir")
    checkpointing_steps: int = flag(500, "optimizer steps between checkpoints", minimum=1)
    checkpoints_total_limit: int | None = flag(
        None, "keep only this many newest checkpoints", minimum=1
    )
    resume_from_checkpoint: str | None = flag(
        None,
        'a checkpoint folder, or "latest" (a new run if there is none yet); flags with other '
        "values than before count from there on, are warned of, or are refused",
        path=True,
    )
    latent_normalization: str = flag(
        "scale",
        "what the exported config says of the latents: scaling_factor, or shift_factor as well, or "
        "latents_mean and latents_std of each channel",
        choices=("scale", "scale_shift", "per_channel"),
    )
    num_latent_images: int = flag(
        1000, "training images whose latents are measured for that", minimum=1
    )
    export_ldm: bool = flag(
        False, "also write the VAE in latent-diffusion's layout, for ComfyUI and A1111"
    )
    export_fp16: bool = flag(
        False,
        'also write float16 weights beside the float32 ones, for from_pretrained(variant="fp16"); '
        "of the final export, not of best/",
    )

    def __post_init__(self) -> None:
        check_limits(self)


@dataclass(frozen=True)
class LoggingArguments:
    """Logging and Hub"""

    report_to: str = flag(
        "tensorboard", 'tracker: any that accelerate knows, "all" that are installed, or "none"'
    )
    tracker_project_name: str = flag("train_autoencoderkl", "project name in the tracker")
    logging_dir: str = flag("logs", "TensorBoard's folder inside --output_dir")
    logging_steps: int = flag(10, "optimizer steps between rows of metrics.jsonl", minimum=1)
    push_to_hub: bool = flag(False, "upload the result at the end")
    hub_model_id: str | None = flag(None, "repository to upload to; by default output_dir's name")
    push_every: int | None = flag(
        None,
        "also upload best/, pictures and metrics in the background at every N-th checkpoint; "
        "checkpoints themselves stay here",
        minimum=1,
    )
    hub_private: bool = flag(False, "make the repository a private one")
    hub_license: str | None = flag(
        None, 'licence for the model card, as the Hub spells it: "apache-2.0", "mit", "other"'
    )
    hub_token: str | None = flag(None, "token for the hub; `hf auth login` is safer", secret=True)

    def __post_init__(self) -> None:
        check_limits(self)
        for name in ("push_every", "hub_private"):
            value = getattr(self, name)
            require(not value or self.push_to_hub, name, value,
                    "is about uploads: add --push_to_hub, or drop it")  # fmt: skip
        for name in ("logging_dir", "tracker_project_name"):
            path = PurePath(getattr(self, name))
            require(not path.is_absolute() and ".." not in path.parts, name, path,
                    "must lie inside --output_dir: give a relative path without ..")  # fmt: skip
        if self.report_to in ("wandb", "all") and self.hub_token is not None:
            raise ArgumentError(
                f"--hub_token cannot be used with --report_to={self.report_to}, which could expose "
                "it; run `hf auth login` instead"
            )


@dataclass(frozen=True)
class Arguments:
    """Everything a run is told, by group."""

    model: ModelArguments
    data: DataArguments
    losses: LossArguments
    discriminator: DiscriminatorArguments
    optimization: OptimizationArguments
    precision: PrecisionArguments
    validation: ValidationArguments
    checkpoints: CheckpointArguments
    logging: LoggingArguments
    dry_run: bool = False

    def __post_init__(self) -> None:
        if not self.model.pretrained_model_name_or_path and (
            not self.model.model_config_name_or_path
        ):
            factor = self.model.downsample_factor
            self.data.require_divisible(factor, f"--downsample_factor={factor}")
        self.require_sides()
        if self.discriminator.disc_norm_type == "batch" and self.discriminator.enabled:
            require(
                self.optimization.train_batch_size > 1,
                "disc_norm_type",
                "batch",
                "needs --train_batch_size of at least 2: the statistics of one image erase it; "
                "use --disc_norm_type=spectral_group",
            )
        if self.data.streaming and self.optimization.max_train_steps is None:
            raise ArgumentError(
                "--streaming needs --max_train_steps: a stream does not say how long an epoch is"
            )
        if self.data.train_split != "train" and not self.data.dataset_name:
            raise ArgumentError(
                f"--train_split={self.data.train_split} needs --dataset_name; folders have no "
                "splits"
            )
        if self.validation.validation_split and self.data.dataset_name is None:
            raise ArgumentError(
                f"--validation_split={self.validation.validation_split} needs --dataset_name; for "
                "a folder use --validation_data_dir"
            )
        if self.validation.validation_split == self.data.train_split:
            raise ArgumentError(
                f"--validation_split={self.validation.validation_split} has images of "
                f"--train_split={self.data.train_split}; name another split, or drop the flag to "
                "hold images back"
            )
        if self.validation.validation_split and len(self.data.dataset_name) > 1:
            raise ArgumentError(
                f"--validation_split={self.validation.validation_split} cannot be used with "
                "several --dataset_name; use --validation_data_dir, or hold images back"
            )
        if self.validation.num_validation_images == 0:
            every = self.logging.push_every
            require(every is None, "push_every", every,
                    "uploads the best weights so far, which --num_validation_images=0 never "
                    "finds; let it validate, or drop --push_every")  # fmt: skip
        if self.validation.best_metric == "lpips" and self.losses.perceptual_scale == 0:
            raise ArgumentError(
                "--best_metric=lpips needs LPIPS, which --perceptual_scale=0 never builds; use "
                "--best_metric=psnr"
            )

    def require_sides(self, narrowest: int | None = None) -> None:
        """Training and validation images must be large enough for what looks at them.

        narrowest: shorter side of the narrowest training image, by default the smallest
        resolution. Raises ArgumentError with the numbers.
        """
        disc, losses, training = self.discriminator, self.losses, []
        validation = [("SSIM", SSIM_WINDOW, "validate nothing: --num_validation_images 0")]
        if losses.perceptual_scale > 0:
            name = f"LPIPS with --lpips_backbone={losses.lpips_backbone}"
            lpips = (name, LPIPS[losses.lpips_backbone], "drop LPIPS: --perceptual_scale 0")
            training.append(lpips)
            validation.append(lpips)
        if disc.enabled:
            name = f"a discriminator with --disc_num_layers={disc.disc_num_layers}"
            training.append((name, discriminator_side(disc.disc_num_layers), "lower that"))
        smallest = min(self.data.training_resolutions)
        name = "train_resolutions" if self.data.train_resolutions else "resolution"
        shape = "" if narrowest is None else " with --aspect_ratio_bucketing"
        require_side(narrowest or smallest, f"--{name}={smallest}{shape}", training)
        if self.validation.num_validation_images != 0:
            resolution = self.data.resolution
            require_side(resolution, f"--resolution={resolution}", validation)

    @property
    def validation_batch_size(self) -> int:
        """Images of a batch in validation and in the measurement of latents."""
        if self.validation.validation_batch_size is not None:
            return self.validation.validation_batch_size
        trained = self.optimization.train_batch_size * max(self.data.training_resolutions) ** 2
        return min(8, max(1, trained // self.data.resolution**2))

    def as_dict(self) -> dict[str, Any]:
        """Every flag and its value, flat, in the order of `--help`; without LAUNCH_ONLY."""
        values = {
            f.name: getattr(getattr(self, name), f.name)
            for name, group in GROUPS.items()
            for f in fields(group)
        }
        return {name: value for name, value in values.items() if name not in LAUNCH_ONLY}


GROUPS: dict[str, type] = {
    "model": ModelArguments,
    "data": DataArguments,
    "losses": LossArguments,
    "discriminator": DiscriminatorArguments,
    "optimization": OptimizationArguments,
    "precision": PrecisionArguments,
    "validation": ValidationArguments,
    "checkpoints": CheckpointArguments,
    "logging": LoggingArguments,
}


def nearest_multiple(value: int, factor: int) -> int:
    """The multiple of `factor` nearest to `value`, at least `factor`."""
    return max(factor, round(value / factor) * factor)
