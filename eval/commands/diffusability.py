"""How well a diffusion model will learn the latents of these autoencoders.

What a gradual change of latents does to the picture (scaled, turned, mirrored, half way to a
neighbour: iFID), how much of them is fine detail, and how far a small flow matching model, trained
on the latents of --reference, gets with those of --data.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from eval.commands import common
from eval.commands.checks import integer

if TYPE_CHECKING:
    from torch import nn

    from eval.protocol.protocol import ProtocolImages

HELP = "equivariance, iFID, and a small diffusion model: how learnable are the latents"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    common.add_model_arguments(parser)
    common.add_data_arguments(parser, num_images=1000)
    add = parser.add_argument_group("Reference").add_argument
    add(
        "--reference",
        required=True,
        metavar="PATH_OR_HUB",
        help="images, as for --data, whose latents are the neighbours and train the denoiser; "
        "others than those of --data",
    )
    add("--reference_split", default="train", help="split of a dataset")
    add("--num_reference_images", type=integer(1), default=10000, help="evenly spaced over it")
    add = parser.add_argument_group("Measures").add_argument
    add("--denoiser_steps", type=integer(1), default=2000, help="batches of 32 that it learns from")
    add("--seeds", type=integer(1, 50), default=3, help="how often all that is drawn is repeated")
    add(
        "--features",
        choices=("inception", "random"),
        default="inception",
        help="of the Fréchet distances: Inception's, or those of a fixed random network, which "
        "needs no weights and compares with nothing published",
    )
    add("--inception_weights", metavar="FILE", help="torch-fidelity's, instead of a download")
    common.add_run_arguments(parser)
    add = parser.add_argument_group("Output").add_argument
    add("--json", metavar="FILE", help="everything measured")
    add("--report", metavar="FILE", help="one self-contained HTML page")


def run(args: argparse.Namespace) -> int:
    """Measures each model, prints and writes what was found."""
    from eval.diffusability.measure import measure_diffusability
    from eval.diffusability.report import as_data, notes, rows, write_diffusability_page
    from eval.report.outputs import write_json
    from eval.report.terminal import print_table

    common.require_one_process("diffusability")
    codecs, images = common.open_inputs(args)
    reference = _open_reference(args, images.protocol.image_mode)
    _check(args, images, reference)
    features, missing = _open_features(args)
    steps, seeds, found = args.denoiser_steps, args.seeds, {}
    with common.device_and_processes(args) as device:
        for label, codec in codecs.items():
            found[label] = measure_diffusability(
                codec, images, reference, features, steps=steps, seeds=seeds, device=device,
                **common.loading(args),
            )  # fmt: skip
    lines = notes(found, missing)
    stamp = [
        f"Data: {images.describe()}; reference: {reference.describe()}",
        f"Protocol: {images.protocol.describe()}; features: {args.features}; denoiser: "
        f"{args.denoiser_steps} steps; seeds 0 to {args.seeds - 1}",
    ]
    print_table(rows(found))
    print("", *lines, *stamp, sep="\n")
    write_json(
        args.json,
        {"models": as_data(found), **images.stamp(), "reference": reference.describe(),
         "features": args.features, "denoiser_steps": args.denoiser_steps},
    )  # fmt: skip
    if args.report:
        write_diffusability_page(Path(args.report), found, lines, stamp)
    return 0


def _open_reference(args: argparse.Namespace, image_mode: str) -> ProtocolImages:
    chosen = vars(args) | {"data": args.reference, "data_split": args.reference_split,
                           "num_images": args.num_reference_images}  # fmt: skip
    try:
        return common.open_images(argparse.Namespace(**chosen), image_mode)
    except ValueError as error:
        raise ValueError(re.sub(r"--data(?=[:=]|_split)", "--reference", str(error))) from error


def _check(args: argparse.Namespace, images: ProtocolImages, reference: ProtocolImages) -> None:
    """What would go wrong after the first model, or mean something else than it seems to."""
    from eval.diffusability.interpolation import NEIGHBOURS

    if args.crop == "full":
        raise ValueError("--crop=full gives images of several sizes; use --crop=adm")
    if len(images) < 2:
        raise ValueError(f"--data={args.data} has one image, and FID needs 2; give more")
    if len(reference) < NEIGHBOURS:
        raise ValueError(
            f"--reference={args.reference} gives {len(reference)} images, and each image of --data "
            f"needs {NEIGHBOURS} neighbours among them: give more images, or raise "
            f"--num_reference_images={args.num_reference_images}"
        )


def _open_features(args: argparse.Namespace) -> tuple[nn.Module | None, str]:
    """The network of the Fréchet distances, or why there is none."""
    from eval.metrics.networks import open_networks
    from eval.metrics.random_features import RandomFeatures

    if args.features == "random":
        return RandomFeatures(), ""
    networks = open_networks(["rfid"], inception_weights=args.inception_weights)
    reason = networks.unavailable.get("rfid", "")
    return networks.inception, f"{reason}, or use --features random" if reason else ""
