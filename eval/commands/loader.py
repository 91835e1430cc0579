"""How many images a second each core loads, against plain PIL.

The training loader, the same with --fast_jpeg_decoding, which decodes JPEGs at a fraction of their
size where the crop allows it, and plain PIL take turns. Without --data the pictures are made on the
spot: JPEGs of 1024 x 768.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from eval.commands.checks import integer

HELP = "images per second and core, against plain PIL"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--data", metavar="FOLDER", help="a folder of .jpg files")
    parser.add_argument(
        "--resolution", type=integer(8, 16384), default=256, help="side of the crops, pixels"
    )
    parser.add_argument(
        "--workers", type=integer(0, 1024), nargs="+", default=[0, 1, 2], help="processes"
    )
    parser.add_argument(
        "--rounds", type=integer(1), default=7, help="how often each loader has its turn"
    )
    parser.add_argument("--images", type=integer(1), default=128, help="images of a turn")
    parser.add_argument("--batch_size", type=integer(1, 65536), default=8, help="images of a batch")
    parser.add_argument("--json", metavar="FILE", help="everything measured")


def run(args: argparse.Namespace) -> int:
    """Measures, prints, and writes the JSON."""
    import tempfile

    from eval.speed.loader_speed import FAST, OURS, PLAIN, loader_speeds, write_photos
    from eval.speed.stopwatch import Spread

    found = []
    with tempfile.TemporaryDirectory(prefix="loader-") as temporary:
        folder = Path(args.data or temporary)
        if args.data is None:
            write_photos(folder)
        elif not any(folder.rglob("*.jpg")):
            raise ValueError(f"--data={folder} holds no .jpg files; give a folder that does")
        print("median (10th to 90th percentile), images per second and core")
        for workers in args.workers:
            speeds = loader_speeds(
                folder, args.resolution, workers, args.rounds, args.images, args.batch_size
            )
            ratios = {name: Spread.ratio(speeds[PLAIN], speeds[name]) for name in (OURS, FAST)}
            for name, values in speeds.items():
                line = f"{workers} workers  {name:20s}  {Spread.of(values).text(1):>22s}"
                if name in ratios:
                    line += f"  {ratios[name].text(2)} times as fast as {PLAIN}"
                print(line)
            row = {name: asdict(ratio) for name, ratio in ratios.items()}
            found.append({"workers": workers, "images_per_s": speeds, "ratio": row})
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0
