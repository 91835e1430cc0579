"""What came out of one training: its model under the protocol, and the way it went there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from eval.metrics.columns import COLUMN, Column
from eval.protocol.results import Evaluation
from eval.quality.training import Training
from modules.tracking.metrics_log import Row, read_rows, whole_validations

EARLY_STEPS = 100
LEFT_OUT = ("psnr_pooled", "low_frequency")  # the table is wide enough
COLUMNS = {key: column for key, column in COLUMN.items() if key not in LEFT_OUT} | {
    column.key: column
    for column in (
        Column("latent_std", "latent std", "", 3, "of all elements of the latents"),
        Column("early_psnr", "early PSNR", "higher", 2, f"training's in {EARLY_STEPS} steps, dB"),
        Column("psnr_equal_time", "PSNR then", "higher", 2, "dB, when the fastest run was over"),
        Column("seconds", "seconds", "lower", 0, "of the steps, without start-up and validation"),
    )
}

Point = tuple[float, float, float]  # images, seconds of training, PSNR on the validation images
Evaluate = Callable[[str], Evaluation]  # of a model's folder


@dataclass
class Measured:
    """numbers: by key of COLUMNS. curve: of the validations; of a peer, of the models it left."""

    numbers: dict[str, float]
    curve: list[Point]
    evaluation: Evaluation


def measure_all(
    trainings: Sequence[Training], evaluate: Evaluate
) -> dict[str, dict[int, Measured]]:
    """All trainings, by arm and seed; with what each had reached when the fastest was over."""
    found: dict[str, dict[int, Measured]] = {}
    for training in trainings:
        found.setdefault(training.name, {})[training.seed] = _measure(training, evaluate)
    everything = [measured for seeds in found.values() for measured in seeds.values()]
    soonest = min((measured.curve[-1][1] for measured in everything), default=0.0)
    for measured in everything:
        _, seconds, psnr = zip(*measured.curve, strict=True)
        measured.numbers["psnr_equal_time"] = float(np.interp(soonest, seconds, psnr))
        measured.numbers["seconds"] = seconds[-1]
    return found


def numbers_of(evaluation: Evaluation) -> dict[str, float]:
    """Of a model, and of its latents if it has any; by key of COLUMNS."""
    numbers = {key: value for key, value in evaluation.summary().items() if key in COLUMNS}
    if evaluation.latents is not None:
        numbers["latent_std"] = evaluation.latents.global_std
    return numbers


def _measure(training: Training, evaluate: Evaluate) -> Measured:
    evaluation = evaluate(str(training.output))
    numbers, rows = numbers_of(evaluation), read_rows(training.output / "metrics.jsonl")
    early = [row["train/psnr"] for row in rows
             if row["step"] <= EARLY_STEPS and "train/psnr" in row]  # fmt: skip
    if early:
        numbers["early_psnr"] = sum(early) / len(early)
    ours = bool(whole_validations(rows))
    steps = own_curve(rows, training.images_per_step) if ours else peers_curve(training, evaluate)
    curve = [(step * training.images_per_step, *rest) for step, *rest in steps]
    return Measured(numbers, curve, evaluation)


def own_curve(rows: Sequence[Row], images_per_step: int) -> list[Point]:
    """(step, seconds, PSNR) from the rows of metrics.jsonl."""
    seconds, before, points = 0.0, 0, []
    for row in rows:
        if "train/images_per_s" in row:
            seconds += (row["step"] - before) * images_per_step / row["train/images_per_s"]
            before = row["step"]
        points += [(row["step"], seconds, row["val/psnr"])] if "val/psnr" in row else []
    return points


def peers_curve(training: Training, evaluate: Evaluate) -> list[Point]:
    """(step, seconds, PSNR) of the models in step-N and of the last, by when they were written."""
    models = {int(path.name[5:]): path for path in training.output.glob("step-*")}
    models[training.steps] = training.output
    written = {step: (path / "config.json").stat().st_mtime for step, path in models.items()}
    first, last = min(models), max(models)
    each = (written[last] - written[first]) / max(1, last - first)
    return [
        (step, step * each, evaluate(str(path)).summary()["psnr"])
        for step, path in sorted(models.items())
    ]
