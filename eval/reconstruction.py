"""The reconstruction command: open the models, measure them together, write what was found."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.codecs import Codec, distinct_labels, open_codec
from eval.evaluate import evaluate_reconstruction
from eval.grid import comparison_grid
from eval.intervals import Difference, Interval, intervals, paired_differences
from eval.networks import Networks
from eval.protocol import Protocol, ProtocolImages
from eval.reconstruction_report import reconstruction_page
from eval.results import Evaluation
from eval.selected import Sample, kept_samples, reconstruct_selected, worst_positions
from eval.tables import (
    difference_lines,
    markdown_table,
    model_data,
    notes,
    terminal_table,
    without_nan,
)
from modules.hardware import device_name
from modules.reduce import process_index_and_count

COMPARED = ("psnr", "ssim", "lpips_alex", "lpips_vgg")  # the differences that are printed


@dataclass(frozen=True)
class Result:
    """Everything that is printed and written."""

    names: dict[str, str]  # label: what --model said
    evaluations: dict[str, Evaluation]
    intervals: dict[str, dict[str, Interval]]
    differences: list[Difference]
    images: ProtocolImages
    protocol: Protocol
    samples: list[Sample]
    worst: list[Sample]
    run: dict[str, Any]

    @property
    def stamp(self) -> list[str]:
        """The lines that stand under every table: protocol, data, run."""
        first = next(iter(self.evaluations.values()))
        return [
            f"Protocol: {self.protocol.describe()}",
            f"Data: {self.images.describe()}, content {first.content[:12]}",
        ]


@dataclass(frozen=True)
class Outputs:
    """Files to write; None for those not wanted."""

    json: str | None = None
    markdown: str | None = None
    report: str | None = None
    grid: str | None = None


def measure(
    model_names: Sequence[str],
    labels: Sequence[str] | None,
    weights: str,
    images: ProtocolImages,
    metrics: Sequence[str],
    networks: Networks,
    *,
    protocol: Protocol,
    device: torch.device,
    fid_cache: str | None,
    batch_size: int,
    num_workers: int,
    num_samples: int,
    num_worst: int,
    progress: bool,
) -> Result | None:
    """Evaluates the named models together; None on every process but the first."""
    models = open_models(model_names, labels, weights)
    names = dict(zip(models, model_names, strict=True))
    start = time.perf_counter()
    evaluations = evaluate_reconstruction(
        models,
        images,
        metrics,
        protocol=protocol,
        batch_size=batch_size,
        device=device,
        lpips=networks.lpips,
        inception=networks.inception,
        fid_cache=Path(fid_cache) if fid_cache else None,
        unavailable=networks.unavailable,
        latents=True,
        num_samples=num_samples,
        num_workers=num_workers,
        progress=progress,
    )
    seconds = time.perf_counter() - start
    if process_index_and_count()[0] != 0:
        return None
    chosen = {p for found in evaluations.values() for p in worst_positions(found, num_worst)}
    errors = np.stack([found.per_image["mse"] for found in evaluations.values()])
    order = sorted(chosen, key=lambda position: -np.nanmax(errors[:, position]))
    return Result(
        names=names,
        evaluations=evaluations,
        intervals={label: intervals(found, protocol.seed) for label, found in evaluations.items()},
        differences=paired_differences(
            {label: found for label, found in evaluations.items() if names[label] != "identity"},
            protocol.seed,
        ),
        images=images,
        protocol=protocol,
        samples=kept_samples(evaluations),
        worst=reconstruct_selected(models, images, order, protocol, device),
        run=_run_data(device, seconds, len(images), batch_size),
    )


def open_models(
    names: Sequence[str], labels: Sequence[str] | None, weights: str
) -> dict[str, Codec]:
    """The codecs by distinct label. Raises ValueError when labels and models do not match."""
    if labels is None:
        labels = distinct_labels(names)
    if len(labels) != len(names) or len(set(labels)) != len(labels):
        raise ValueError(f"--labels {' '.join(labels)} must give {len(names)} different names")
    return {label: open_codec(name, weights) for label, name in zip(labels, names, strict=True)}


def write_outputs(result: Result, outputs: Outputs) -> None:
    """Prints the table with its notes, and writes the files that are wanted."""
    evaluations, differences = result.evaluations, result.differences
    messages = notes(evaluations, result.images.label)
    compared = difference_lines(differences, COMPARED)
    run = (
        f"Run: {result.run['seconds']:.1f} s, {result.run['images_per_second']:.2f} images/s, "
        f"peak memory {result.run['peak_memory_mib']:.0f} MiB, {result.run['device']}, "
        f"{result.run['processes']} process(es)"
    )
    print(terminal_table(evaluations), "", *messages, *result.stamp, run, sep="\n")
    if compared:
        print("", "Paired differences, 95 % bootstrap interval:", *compared, sep="\n")
    if outputs.json:
        text = json.dumps(without_nan(result_data(result)), indent=1, allow_nan=False)
        Path(outputs.json).write_text(text + "\n")
    if outputs.markdown:
        lines = [markdown_table(evaluations), "", *messages, *result.stamp]
        page = "\n\n".join(["\n".join(lines[:1]), *lines[2:]]) + "\n"
        Path(outputs.markdown).write_text(page, encoding="utf-8", errors="backslashreplace")
    if outputs.report:
        page = reconstruction_page(result)
        Path(outputs.report).write_text(page, encoding="utf-8", errors="backslashreplace")
    if outputs.grid:
        comparison_grid(evaluations).save(outputs.grid)


def result_data(result: Result) -> dict[str, Any]:
    """The JSON file: models, differences, protocol, data, run."""
    first = next(iter(result.evaluations.values()))
    return {
        "models": {
            label: {
                "model": result.names[label],
                **model_data(found, result.intervals[label], worst_images(result, found)),
            }
            for label, found in result.evaluations.items()
        },
        "differences": [
            {
                "metric": difference.metric,
                "first": difference.first,
                "second": difference.second,
                "better": difference.better,
                **vars(difference.interval),
            }
            for difference in result.differences
        ],
        "protocol": result.protocol.stamp(),
        "data": {
            "source": result.images.source.name,
            "num_images": len(result.images),
            "of": len(result.images.source),
            "unreadable": {result.images.label(p): why for p, why in first.unreadable.items()},
            "content": first.content,
        },
        "run": result.run,
    }


def worst_images(result: Result, evaluation: Evaluation, count: int = 8) -> list[dict[str, Any]]:
    """Name and PSNR (from the exact squared error) of a model's worst images."""
    return [
        {
            "position": position,
            "image": result.images.label(position),
            "mse": float(evaluation.per_image["mse"][position]),
        }
        for position in worst_positions(evaluation, count)
    ]


def _run_data(
    device: torch.device, seconds: float, num_images: int, batch_size: int
) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "images_per_second": num_images / seconds,
        "peak_memory_mib": _peak_memory_mib(device),
        "processes": process_index_and_count()[1],
        "device": device_name(device),
        "batch_size": batch_size,
    }


def _peak_memory_mib(device: torch.device) -> float:
    """Of the device's allocator on a GPU, of the whole process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
