"""What came out of one training: its model under the protocol, and the way it went there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eval.metrics.columns import COLUMN, Column
from eval.protocol.results import Evaluation
from eval.quality.summary import value_at
from eval.quality.training import Training
from modules.tracking.metrics_log import Row, read_rows, whole_validations

EARLY_STEPS = 100
LEFT_OUT = ("psnr_pooled", "low_frequency")  # of the table, which is wide enough
COLUMNS = {
    **{key: column for key, column in COLUMN.items() if key not in LEFT_OUT},
    "latent_std": Column("latent_std", "latent std", "", 3, "of all elements of the latents"),
    "early_psnr": Column(
        "early_psnr", "early PSNR", "higher", 2, f"training's, mean of {EARLY_STEPS} steps, dB"
    ),
    "psnr_equal_time": Column(
        "psnr_equal_time", "PSNR equal time", "higher", 2, "dB, when the fastest run was over"
    ),
    "seconds": Column("seconds", "seconds", "lower", 0, "of the steps alone"),
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
    soonest = min((m.curve[-1][1] for m in everything if m.curve), default=0.0)
    for measured in everything:
        if len(measured.curve) > 1:
            points = [(seconds, psnr) for _, seconds, psnr in measured.curve]
            measured.numbers["psnr_equal_time"] = value_at(points, soonest)
            measured.numbers["seconds"] = points[-1][0]
    return found


def summary_of(evaluation: Evaluation) -> dict[str, float]:
    """The numbers of a model, and of its latents if it has any."""
    numbers = {key: value for key, value in evaluation.summary().items() if key in COLUMNS}
    if evaluation.latents is not None:
        numbers["latent_std"] = evaluation.latents.global_std
    return numbers


def _measure(training: Training, evaluate: Evaluate) -> Measured:
    evaluation = evaluate(str(training.output))
    numbers = summary_of(evaluation)
    rows = read_rows(training.output / "metrics.jsonl")
    early = [row["train/psnr"] for row in rows
             if row["step"] <= EARLY_STEPS and "train/psnr" in row]  # fmt: skip
    if early:
        numbers["early_psnr"] = sum(early) / len(early)
    curve = (
        _own_curve(rows, training.images_per_step)
        if rows
        else _peers_curve(training, numbers["psnr"], evaluate)
    )
    return Measured(numbers, curve, evaluation)


def _own_curve(rows: Sequence[Row], images_per_step: int) -> list[Point]:
    """From metrics.jsonl; the seconds are those of the steps, without start-up and validations."""
    seconds, at, before = 0.0, {0: 0.0}, 0
    for row in rows:
        if "train/images_per_s" in row:
            seconds += (row["step"] - before) * images_per_step / row["train/images_per_s"]
            at[row["step"]], before = seconds, row["step"]
    return [
        (row["step"] * images_per_step, at[row["step"]], row["val/psnr"])
        for row in whole_validations(rows)
    ]


def _peers_curve(training: Training, psnr: float, evaluate: Evaluate) -> list[Point]:
    """Of the models in step-N and of the last, without start-up: by when they were written."""
    models = {int(path.name[5:]): path for path in training.output.glob("step-*")}
    models[training.steps] = training.output
    written = {step: (path / "config.json").stat().st_mtime for step, path in models.items()}
    first, last = min(models), training.steps
    each = (written[last] - written[first]) / max(1, last - first)
    reached = {step: psnr if step == last else evaluate(str(path)).summary()["psnr"]
               for step, path in sorted(models.items())}  # fmt: skip
    return [
        (step * training.images_per_step, step * each, value) for step, value in reached.items()
    ]
