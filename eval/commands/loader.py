"""How many images a second each core loads, against plain PIL.

The training loader, the same with --fast_jpeg_decoding, which decodes JPEGs at a fraction of their
size where the crop allows it, and plain PIL take turns. Without --data the pictures are made on the
spot: JPEGs of 1024 x 768.

With --streaming: what is read of shards of these pictures in an epoch, by numbers of processes and
workers (the processes one after the other), as a multiple of the shards' size; and what it costs to
resume, in bytes and seconds, by where the run was. On Linux.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from itertools import product
from pathlib import Path

from eval.commands.checks import integer

HELP = "images per second and core, against plain PIL"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    add = parser.add_argument
    add("--data", metavar="FOLDER", help="a folder of .jpg files")
    add("--resolution", type=integer(8, 16384), default=256, help="side of the crops, pixels")
    add("--workers", type=integer(0, 1024), nargs="+", default=[0, 1, 2], help="of the loader")
    add("--rounds", type=integer(1), default=7, help="how often each loader has its turn")
    add("--images", type=integer(1), help="of a turn (128), or in all shards (6400)")
    add("--batch_size", type=integer(1, 65536), default=8, help="images of a batch")
    add("--streaming", action="store_true", help="measure what is read of shards")
    add("--shards", type=integer(1), default=16, help="with --streaming")
    add("--processes", type=integer(1), nargs="+", default=[1, 2, 4], help="with --streaming")
    add("--shuffle_buffer_size", type=integer(1), default=1000, help="with --streaming")
    add("--json", metavar="FILE", help="everything measured")


def run(args: argparse.Namespace) -> int:
    """Measures, prints, and writes the JSON."""
    import tempfile

    from eval.report.outputs import write_json
    from eval.report.terminal import print_table
    from eval.speed.loader_speed import FAST, OURS, PLAIN, loader_speeds, write_photos
    from eval.speed.stopwatch import Spread

    found, rows = [], [["workers", "loader", "images/s", f"times {PLAIN}"]]
    with tempfile.TemporaryDirectory(prefix="loader-") as temporary:
        folder = Path(args.data or temporary)
        if args.data is None:
            write_photos(folder)
        elif not any(folder.rglob("*.jpg")):
            raise ValueError(f"--data={folder} holds no .jpg files; give a folder that does")
        if args.streaming:
            return _measure_streams(args, sorted(folder.rglob("*.jpg")))
        for workers in args.workers:
            speeds = loader_speeds(
                folder, args.resolution, workers, args.rounds, args.images or 128, args.batch_size
            )
            ratios = {name: Spread.ratio(speeds[PLAIN], speeds[name]) for name in (OURS, FAST)}
            for name, values in speeds.items():
                ratio = ratios[name].text(2) if name in ratios else ""
                rows.append([str(workers), name, Spread.of(values).text(1), ratio])
            row = {name: asdict(ratio) for name, ratio in ratios.items()}
            found.append({"workers": workers, "images_per_s": speeds, "ratio": row})
    print("median (10th to 90th percentile), images per second and core")
    print_table(rows)
    write_json(args.json, found)
    return 0


def _measure_streams(args: argparse.Namespace, photos: list[Path]) -> int:
    import tempfile

    import datasets

    from eval.report.outputs import write_json
    from eval.report.terminal import print_table
    from eval.speed.stream_cost import StreamCost, write_shards

    datasets.disable_progress_bars()
    images, found = args.images or 6400, []
    with tempfile.TemporaryDirectory(prefix="streams-") as temporary:
        for kind in ("parquet", "tar"):
            folder = Path(temporary) / kind
            size = write_shards(folder, kind, photos, args.shards, images)
            cost = StreamCost(folder, images, args.shuffle_buffer_size, args.batch_size)
            print(f"{args.shards} {kind} shards, {size / 1e6:.1f} MB, {images} images")
            read = [["processes", "workers", "bytes of an epoch / of the shards"]]
            for processes, workers in product(args.processes, args.workers):
                ratio = cost.epoch(processes, workers).bytes / size
                read.append([str(processes), str(workers), f"{ratio:.3f}"])
                found.append({"kind": kind, "processes": processes, "workers": workers,
                              "ratio": ratio})  # fmt: skip
            print_table(read)
            again = [["resumed at epoch", "to the first batch", "until every lane is entered"]]
            places = (0, 0.1, 0.5, 0.9, 2.5)
            resumed = cost.resumed([int(place * images) for place in places])
            for place, (first, every) in zip(places, resumed, strict=True):
                again.append([f"{place:.1f}", *(f"{spent.bytes / 1e6:.1f} MB {spent.seconds:.2f} s"
                                                for spent in (first, every))])  # fmt: skip
                found.append({"kind": kind, "epochs": place, "bytes": first.bytes,
                              "seconds": first.seconds, "bytes_of_all": every.bytes})  # fmt: skip
            print_table(again)
    write_json(args.json, {"streams": found})
    return 0
