"""How well models reconstruct images: PSNR, SSIM, LPIPS, rFID, colour, sharpness; intervals.

Every model sees every image once. "identity", "jpeg:QUALITY" and "downsample:FACTOR" are models
too: an autoencoder that does not beat downsample:8 is not working. Under torchrun or accelerate
launch the processes share the images and the numbers stay the same. A metric whose network cannot
be downloaded is shown as missing; the exit code is 1 only if --metrics named it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from eval.commands import common
from eval.commands.checks import integer
from eval.metrics.columns import DEFAULT_METRICS, METRICS, keys_of
from modules.config.smallest_sides import LPIPS, SSIM_WINDOW, require_side

HELP = "PSNR, SSIM, LPIPS, rFID and more of any models, side by side"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    common.add_model_arguments(parser, others="; or identity, jpeg:QUALITY, downsample:FACTOR")
    add = parser.add_argument
    add("--labels", nargs="+", help="names of the models in tables, in their order")
    add(
        "--metrics", nargs="+", choices=tuple(METRICS), help=f"default: {' '.join(DEFAULT_METRICS)}"
    )
    common.add_data_arguments(parser, num_images=None)
    common.add_protocol_arguments(parser)
    add = parser.add_argument_group("Networks").add_argument
    add(
        "--lpips_weights",
        nargs="+",
        metavar="FILE",
        help="torchvision's weights of AlexNet and VGG16, recognised by their contents",
    )
    add(
        "--inception_weights",
        metavar="FILE",
        help="torch-fidelity's weights-inception-2015-12-05-6726825d.pth",
    )
    common.add_run_arguments(parser)
    add = parser.add_argument_group("Output").add_argument
    add("--json", metavar="FILE", help="everything measured")
    add("--markdown", metavar="FILE", help="the table, with its protocol")
    add("--report", metavar="FILE", help="one self-contained HTML page")
    add("--grid", metavar="FILE", help="picture of originals and reconstructions")
    add("--num_samples", type=integer(0, 10**4), default=6, help="rows of pictures")
    add("--num_worst", type=integer(0, 10**4), default=4, help="worst images of each model shown")


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table, writes the files; 1 if a metric named in --metrics is missing."""
    from eval.metrics.networks import open_networks
    from eval.protocol.comparison import Comparison, run_data
    from eval.protocol.evaluate import evaluate_reconstruction
    from eval.report.outputs import write_comparison
    from modules.distributed.reduce import process_index_and_count

    metrics = args.metrics or DEFAULT_METRICS
    if args.crop != "full":
        _require_side(args.resolution, metrics)
    models, images = common.open_inputs(args, baselines=True)
    networks = open_networks(metrics, args.lpips_weights, args.inception_weights)
    with common.device_and_processes(args) as device:
        start = time.perf_counter()
        evaluations = evaluate_reconstruction(
            models,
            images,
            metrics,
            protocol=images.protocol,
            device=device,
            networks=networks,
            latents=True,
            num_samples=args.num_samples,
            **common.loading(args),
        )
        run = run_data(device, time.perf_counter() - start, len(images), args.batch_size)
        if process_index_and_count()[0] != 0:
            return 0
        names = dict(zip(models, args.model, strict=True))
        found = Comparison(models, names, evaluations, images, device, args.num_worst, run)
        write_comparison(found, args.json, args.markdown, args.report, args.grid)
    missing = any(found.missing for found in evaluations.values())
    return 1 if args.metrics and missing else 0


def _require_side(resolution: int, metrics: Sequence[str]) -> None:
    smallest = {"ssim": SSIM_WINDOW} | {f"lpips_{name}": side for name, side in LPIPS.items()}
    needs = [(key, smallest[key], "leave it out of --metrics")
             for key in keys_of(list(metrics)) if key in smallest]  # fmt: skip
    require_side(resolution, f"--resolution={resolution}", needs)
