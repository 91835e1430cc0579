"""Flags that several commands share, and what they open."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.commands.checks import integer
from eval.protocol import choices
from modules.errors import blaming

if TYPE_CHECKING:
    import torch

    from eval.protocol.codecs import Codec
    from eval.protocol.protocol import Protocol, ProtocolImages
    from modules.data.sources.parts import ImageSource

MODEL_HELP = (
    "a folder with a VAE or a pipeline, a hub id, or one .safetensors or .ckpt file in "
    "latent-diffusion's layout"
)
WEIGHTS = ("auto", "raw", "ema")
SYNTHETIC_IMAGES = 1000
SYNTHETIC_SEED = 2**31  # pictures that no run has trained on, unless this was its --seed


def add_model_arguments(
    parser: argparse.ArgumentParser, nargs: str | None = "+", others: str = ""
) -> None:
    """--model, and which of its weights; `others` are models that are no autoencoders."""
    add = parser.add_argument
    add("--model", nargs=nargs, required=True, help=MODEL_HELP + others)
    add(
        "--pretrained_weights",
        choices=WEIGHTS,
        default="auto",
        help="of a checkpoint that holds both: raw as trained, ema their average, auto the average",
    )


def add_data_arguments(parser: argparse.ArgumentParser, num_images: int | None) -> None:
    """--data and how its images are cut; `num_images` is the default of that flag."""
    add = parser.add_argument_group("Data").add_argument
    add(
        "--data",
        required=True,
        metavar="PATH_OR_HUB",
        help='a folder of images, an image, a dataset (hub id or local), or "synthetic"',
    )
    add("--data_split", default="validation", help="split of a dataset")
    add("--data_config_name", help="configuration of a dataset, if it has several")
    add("--image_column", default="image", help="column of a dataset with images")
    add("--data_cache_dir", help="where downloaded models and datasets are kept")
    add(
        "--num_images",
        type=integer(1),
        default=num_images,
        help="use so many images, evenly spaced over the data",
    )
    add(
        "--resolution",
        type=integer(1, 16384),
        default=choices.DEFAULT_RESOLUTION,
        help="side of the crop, pixels",
    )
    add(
        "--crop",
        choices=choices.CROPS,
        default="adm",
        help="adm: halve, resize bicubically, crop the centre; resize: once, bicubically; "
        "full: whole images, cropped to multiples of 32",
    )


def add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    """What else is stamped on the numbers."""
    add = parser.add_argument_group("Protocol").add_argument
    add("--posterior", choices=choices.POSTERIORS, default="mode", help="which latents are decoded")
    add(
        "--rounding",
        choices=choices.ROUNDINGS,
        default="nearest",
        help="of reconstructions to 8 bits",
    )
    add("--seed", type=integer(0, 2**63 - 2), default=0, help="of posterior samples and intervals")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """How the work is done, which does not change the numbers."""
    add = parser.add_argument_group("Run").add_argument
    add("--batch_size", type=integer(1, 65536), default=choices.DEFAULT_BATCH_SIZE, help="images")
    add(
        "--num_workers",
        type=integer(0, 1024),
        default=0,
        help="processes that load images; 0 is the main one",
    )
    add_device_argument(add)
    add("--no_progress", action="store_true", help="no progress bar")


def add_device_argument(add: Callable[..., object]) -> None:
    """--device, as `device_and_processes` takes it. add: `add_argument` of a parser or a group."""
    add("--device", help="such as cpu or cuda:1 [default: cuda if there is one]")


def open_inputs(
    args: argparse.Namespace, baselines: bool = False
) -> tuple[dict[str, Codec], ProtocolImages]:
    """The models of --model by label, and the images of --data as they take them.

    baselines: whether models may be such as jpeg:10 too. Raises ValueError naming the flag.
    """
    from eval.protocol.codecs import VAECodec, common_mode, open_codec, open_models

    labels, opener = vars(args).get("labels"), open_codec if baselines else VAECodec.open
    models = open_models(args.model, args.pretrained_weights, labels, opener)
    return models, open_images(args, common_mode(models))


def open_images(args: argparse.Namespace, image_mode: str) -> ProtocolImages:
    """The images of --data under the protocol that the flags ask for, in the mode that models take.

    Flags that a command does not have keep their default. Raises ValueError naming the flag.
    """
    from eval.protocol.protocol import Protocol, ProtocolImages
    from modules.data.shared_memory import require_shared_memory
    from modules.image_modes import CHANNELS

    names = ("resolution", "crop", "posterior", "rounding", "seed")
    options = {name: value for name, value in vars(args).items() if name in names}
    protocol = Protocol(image_mode=image_mode, **options)
    if args.crop != "full":
        pixels = CHANNELS[image_mode] * args.resolution**2
        require_shared_memory("--num_workers", args.num_workers, 2, args.batch_size * pixels)
    return ProtocolImages(_open_source(args, protocol), protocol, args.num_images)


def loading(args: argparse.Namespace) -> dict[str, Any]:
    """How a measurement is to load the images: its options of these names."""
    return {
        "batch_size": 1 if args.crop == "full" else args.batch_size,
        "num_workers": args.num_workers,
        "progress": not args.no_progress,
    }


def require_one_process(command: str) -> None:
    """Raises ValueError where several were started."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(f"{command} runs on one process; start it without torchrun")


def _open_source(args: argparse.Namespace, protocol: Protocol) -> ImageSource:
    from modules.data.images.synthetic import SyntheticImages
    from modules.data.sources.hf_dataset import NamedDataset
    from modules.data.sources.open import open_files, open_folder, open_rows

    if args.data == "synthetic":
        count, alpha = args.num_images or SYNTHETIC_IMAGES, protocol.image_mode == "RGBA"
        return SyntheticImages(count, args.resolution, SYNTHETIC_SEED, alpha)
    path = Path(args.data)
    if path.is_file():
        return open_files([path], flag="--data")
    packed = (".parquet", ".tar", ".arrow")  # in it, or one level down, make it a dataset
    inside = chain(path.glob("*"), path.glob("*/*"))
    if path.is_dir() and not any(file.suffix in packed for file in inside):
        return open_folder(path, flag="--data")
    try:
        dataset = NamedDataset(
            args.data,
            config_name=args.data_config_name,
            split=args.data_split,
            image_column=args.image_column,
            cache_dir=args.data_cache_dir,
            split_flag="--data_split",
        )
        return open_rows(dataset)
    except ValueError as error:
        raise ValueError(str(error).replace("--dataset_name", "--data")) from error


@contextmanager
def device_and_processes(args: argparse.Namespace) -> Iterator[torch.device]:
    """The device of this process; joins the others that torchrun or accelerate launch started."""
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "") != "true"
    default = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu"
    with blaming(f"--device={args.device}", "give cpu, cuda or cuda:N"):
        device = torch.device(args.device or default)
        if device.type == "cuda" and device.index is None:  # each process has its own
            device = torch.device(default)
        torch.zeros(1, device=device).cpu()  # there is such a device, and it computes
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
