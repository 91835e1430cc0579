"""How many images a second each core loads, against plain PIL.

The training loader decodes JPEGs at a fraction of their size where the crop allows it; plain PIL
decodes them whole, resizes and crops. The two take turns. Without --data the pictures are made on
the spot: JPEGs of 1024 x 768.

With --streaming: what is read of shards of these pictures in an epoch, by numbers of processes and
workers (the processes one after the other), as a multiple of the shards' size; and what it costs to
resume, in bytes and seconds, by where the run was. On Linux.
"""

from __future__ import annotations

import argparse
import json
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
        "--workers", type=integer(0, 1024), nargs="+", default=[0, 1, 2], help="of the loader"
    )
    parser.add_argument(
        "--rounds", type=integer(1), default=7, help="how often each loader has its turn"
    )
    parser.add_argument(
        "--images", type=integer(1), help="of a turn (128), or in all shards (6400)"
    )
    parser.add_argument("--batch_size", type=integer(1, 65536), default=8, help="images of a batch")
    parser.add_argument("--streaming", action="store_true", help="measure what is read of shards")
    parser.add_argument("--shards", type=integer(1), default=16, help="with --streaming")
    parser.add_argument(
        "--processes", type=integer(1), nargs="+", default=[1, 2, 4], help="with --streaming"
    )
    parser.add_argument(
        "--shuffle_buffer_size", type=integer(1), default=1000, help="with --streaming"
    )
    parser.add_argument("--json", metavar="FILE", help="everything measured")


def run(args: argparse.Namespace) -> int:
    """Measures, prints, and writes the JSON."""
    import tempfile

    from eval.speed.loader_speed import loader_speeds, write_photos
    from eval.speed.spread import Spread

    found = []
    with tempfile.TemporaryDirectory(prefix="loader-") as temporary:
        folder = Path(args.data or temporary)
        if args.data is None:
            write_photos(folder)
        elif not any(folder.rglob("*.jpg")):
            raise ValueError(f"--data={folder} holds no .jpg files; give a folder that does")
        if args.streaming:
            return _measure_streams(args, sorted(folder.rglob("*.jpg")))
        print("median (10th to 90th percentile), images per second and core")
        print(f"workers  {'ours':>22s}  {'plain PIL':>22s}  {'ratio':>20s}")
        for workers in args.workers:
            speed = loader_speeds(
                folder, args.resolution, workers, args.rounds, args.images or 128, args.batch_size
            )
            ours, plain = Spread.of(speed.ours), Spread.of(speed.plain)
            ratio = speed.speedup
            print(f"{workers:7d}  {ours.text(1):>22s}  {plain.text(1):>22s}  {ratio.text(2):>20s}")
            found.append({"workers": workers, "ours": ours.to_dict(), "plain": plain.to_dict(),
                          "ratio": ratio.to_dict()})  # fmt: skip
    if args.json:
        Path(args.json).write_text(json.dumps({"images_per_s": found}, indent=1) + "\n")
    return 0


def _measure_streams(args: argparse.Namespace, photos: list[Path]) -> int:
    import tempfile

    import datasets

    from eval.speed.stream_cost import StreamCost, write_shards

    datasets.disable_progress_bars()
    images, found = args.images or 6400, []
    with tempfile.TemporaryDirectory(prefix="streams-") as temporary:
        for kind in ("parquet", "tar"):
            folder = Path(temporary) / kind
            size = write_shards(folder, kind, photos, args.shards, images)
            cost = StreamCost(folder, images, args.shuffle_buffer_size, args.batch_size)
            print(f"{args.shards} {kind} shards, {size / 1e6:.1f} MB, {images} images")
            print("  processes  workers  bytes of an epoch / bytes of the shards")
            for processes in args.processes:
                for workers in args.workers:
                    epoch = cost.epoch(processes, workers)
                    print(f"  {processes:9d}  {workers:7d}  {epoch.bytes / size:.3f}", flush=True)
                    found.append({"kind": kind, "processes": processes, "workers": workers,
                                  "ratio": epoch.bytes / size})  # fmt: skip
            print("  resumed at   to the first batch     until every lane is entered")
            places = (0, 0.1, 0.5, 0.9, 2.5)
            resumed = cost.resumed([int(place * images) for place in places])
            for place, (first, every) in zip(places, resumed, strict=True):
                print(f"  epoch {place:4.1f}   {first.bytes / 1e6:6.1f} MB {first.seconds:6.2f} s"
                      f"     {every.bytes / 1e6:6.1f} MB {every.seconds:6.2f} s")  # fmt: skip
                found.append({"kind": kind, "epochs": place, "bytes": first.bytes,
                              "seconds": first.seconds, "bytes_of_all": every.bytes})  # fmt: skip
    if args.json:
        Path(args.json).write_text(json.dumps({"streams": found}, indent=1) + "\n")
    return 0
