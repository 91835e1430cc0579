"""What is trained, and on which images: the flags of the model and of the data."""

from __future__ import annotations

from dataclasses import dataclass

from modules.config.limits import FlagGroup, flag, require
from modules.errors import ArgumentError


@dataclass(frozen=True)
class ModelArguments(FlagGroup):
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
    image_mode: str | None = flag(
        None,
        "L (grey), RGB, or RGBA, which keeps transparency: what images are trained on as; from "
        "scratch RGB, else it must match the pretrained model",
        choices=("L", "RGB", "RGBA"),
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
    vae_init: str | None = flag(
        None,
        "weights of a VAE from scratch: random, or resampler, a linear down- and upsampler that "
        "saves the first thousands of steps; by default resampler wherever the groups allow it",
        choices=("random", "resampler"),
    )
    decoder_only: bool = flag(
        False,
        "train the decoder alone; encoder, quant_conv and scaling factor stay bit-identical, so "
        "latents remain compatible with existing diffusion models",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretrained_model_name_or_path and self.model_config_name_or_path:
            raise ArgumentError(
                "--pretrained_model_name_or_path and --model_config_name_or_path exclude each "
                "other: give weights to fine-tune, or a configuration to start from scratch"
            )
        if self.decoder_only and self.from_scratch:
            raise ArgumentError(
                "--decoder_only needs --pretrained_model_name_or_path: a random frozen encoder "
                "would never learn"
            )
        rule = "is for a VAE from scratch; drop it, or --pretrained_model_name_or_path"
        self.require(self.vae_init != "resampler" or self.from_scratch, "vae_init", rule)
        rule = "needs --pretrained_model_name_or_path, whose weights it chooses; drop it"
        unasked = self.pretrained_weights == "auto"
        self.require(unasked or not self.from_scratch, "pretrained_weights", rule)
        if (widths := self.block_out_channels) is not None:
            factor, groups = self.downsample_factor, self.norm_num_groups or 1
            levels = factor.bit_length()
            require(len(widths) == levels, "block_out_channels", " ".join(map(str, widths)),
                    f"must list {levels} widths for --downsample_factor={factor} (log2 of the "
                    "factor, plus 1)")  # fmt: skip
            for width in widths:
                rule = f"must divide every width of --block_out_channels, also {width}"
                require(width % groups == 0, "norm_num_groups", groups, rule)

    @property
    def from_scratch(self) -> bool:
        """Whether training begins with weights that have seen no image."""
        return self.pretrained_model_name_or_path is None


@dataclass(frozen=True)
class DataArguments(FlagGroup):
    """Data"""

    dataset_name: tuple[str, ...] | None = flag(
        None,
        'hub id or local folder of a dataset, or several that are mixed; "synthetic" is the '
        "built-in procedural set",
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
        "decode JPEGs at 1/2, 1/4 or 1/8 where 1.5 times the crop's size is left: about twice as "
        "fast, but the finest detail is 7 to 12 % weaker than in evaluation, which decodes all",
    )
    max_bad_images: float = flag(
        0.01, "stop when more than this fraction of the training images cannot be read", maximum=1
    )
    dataloader_num_workers: int = flag(
        0, "processes that load images; 0 is the main process", maximum=1024
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.streaming and self.aspect_ratio_bucketing:
            raise ArgumentError(
                "--aspect_ratio_bucketing cannot be used with --streaming: a stream does not tell "
                "the sizes of its images; drop one, or use --train_resolutions"
            )
        if self.streaming and not self.dataset_name:
            raise ArgumentError("--streaming needs --dataset_name: folders are read directly")
        if self.streaming and self.max_train_samples:
            raise ArgumentError("--max_train_samples cannot be used with --streaming; drop one")
        names, weights = self.dataset_name or (), self.dataset_weights
        if set(names) <= {"synthetic"}:
            rule = "needs the --dataset_name it belongs to (for files alone parquet or webdataset)"
            self.require(not self.dataset_config_name, "dataset_config_name", rule)
            require(not self.data_files, "data_files", " ".join(self.data_files or ()), rule)
            rule = "is not read with --dataset_name=synthetic; drop one of the two"
            self.require(not (names and self.train_data_dir), "train_data_dir", rule)
        for option in ("dataset_config_name", "data_files", "train_data_dir"):
            if len(names) > 1 and getattr(self, option):
                raise ArgumentError(
                    f"--{option} cannot be used with several --dataset_name: it would mean all of "
                    "them; drop it, or give each dataset a folder of its own"
                )
        if weights is not None:
            text = " ".join(f"{weight:g}" for weight in weights)
            require(len(weights) == len(names), "dataset_weights", text,
                    f"must be {len(names)} numbers, one for each --dataset_name")  # fmt: skip
        elif self.streaming and len(names) > 1:
            raise ArgumentError(
                "--streaming with several --dataset_name needs --dataset_weights: a stream does "
                "not say how many images it has"
            )

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
        named = [("resolution", self.resolution)]
        named += [("train_resolutions", resolution) for resolution in self.train_resolutions or ()]
        for name, resolution in named:
            nearest = max(factor, round(resolution / factor) * factor)
            require(resolution % factor == 0, name, resolution,
                    f"must be divisible by {whose}; try {nearest}")  # fmt: skip
