"""Summaries as rows of cells, for a terminal, Markdown or HTML, and what to know beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from eval.metrics.columns import COLUMN, COLUMNS
from eval.protocol.intervals import Difference, Interval
from eval.protocol.results import Evaluation
from eval.report.page import Cell

BASELINE = "downsample:8"
COMPARED = ("psnr", "ssim", "lpips_alex", "lpips_vgg")  # of which differences are shown


def shown_keys(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Metrics that any model has or that were asked for and are missing, in table order."""
    present: set[str] = set()
    for evaluation in evaluations.values():
        present |= set(evaluation.summary()) | set(evaluation.missing)
    return [column.key for column in COLUMNS if column.key in present]


def best_models(evaluations: Mapping[str, Evaluation], key: str) -> set[str]:
    """The models that are best at a metric, as printed; none where all are equal.

    The identity codec does not compete: it is there to show what perfect looks like.
    """
    column = COLUMN[key]
    scores = {
        label: column.distance(float(column.format(value)))
        for label, evaluation in evaluations.items()
        if not math.isnan(value := evaluation.summary().get(key, math.nan)) and label != "identity"
    }
    if not column.better or len(set(scores.values())) < 2:
        return set()
    return {label for label, score in scores.items() if score == min(scores.values())}


def heading(keys: Sequence[str]) -> list[str]:
    """What stands over `metric_cells`."""
    return ["model", *(COLUMN[key].heading for key in keys)]


def metric_cells(
    evaluations: Mapping[str, Evaluation],
    keys: Sequence[str],
    intervals: Mapping[str, Mapping[str, Interval]] | None = None,
) -> dict[str, list[Cell]]:
    """The numbers of each model, the best of a column marked. intervals: by label, for details."""

    def bounds(label: str, key: str) -> str:
        interval = (intervals or {}).get(label, {}).get(key)
        if interval is None or math.isnan(interval.mean):
            return ""
        return " … ".join(COLUMN[key].format(bound) for bound in (interval.low, interval.high))

    best = {key: best_models(evaluations, key) for key in keys}
    summaries = {label: found.summary() for label, found in evaluations.items()}
    return {
        label: [
            Cell(COLUMN[key].format(summary.get(key)), bounds(label, key), label in best[key])
            for key in keys
        ]
        for label, summary in summaries.items()
    }


def rows(evaluations: Mapping[str, Evaluation], best: str = "*{}") -> list[list[str]]:
    """A header and one row of texts a model. best: how the best number of a column is written."""
    keys = shown_keys(evaluations)
    return [
        heading(keys),
        *(
            [label, *(best.format(cell.text) if cell.best else cell.text for cell in cells)]
            for label, cells in metric_cells(evaluations, keys).items()
        ),
    ]


def markdown_table(evaluations: Mapping[str, Evaluation]) -> str:
    """The same as a Markdown table, the best of each column in bold."""
    header, *body = rows(evaluations, best="**{}**")
    rule = ["---", *["---:"] * (len(header) - 1)]
    body = [[label.replace("|", "\\|"), *numbers] for label, *numbers in body]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *body])


def meanings(keys: Sequence[str]) -> str:
    """What the columns are, in one paragraph; those that mean the same together."""
    titles: dict[str, list[str]] = {}
    for key in keys:
        titles.setdefault(COLUMN[key].meaning, []).append(COLUMN[key].title)
    return "; ".join(f"{', '.join(names)}: {meaning}" for meaning, names in titles.items()) + "."


def notes(evaluations: Mapping[str, Evaluation], name_of: Callable[[int], str]) -> list[str]:
    """What a reader must know beside the numbers: missing metrics, NaN and unreadable images.

    And which autoencoders a resize by 8 and back outdoes. name_of: an image's name by its position.
    """
    first = next(iter(evaluations.values()))
    lines = [
        f"unreadable, left out: {name_of(position)}: {reason}"
        for position, reason in first.unreadable.items()
    ]
    missing: dict[tuple[str, str], list[str]] = {}
    for label, found in evaluations.items():
        if bad := len(found.nan_images):
            total = found.num_images + bad
            lines.append(f"{label}: {bad} of {total} images NaN, left out of its means")
        for key, reason in found.missing.items():
            missing.setdefault((COLUMN[key].title, reason), []).append(label)
    for (title, reason), models in missing.items():
        who = "" if len(models) == len(evaluations) else f" for {', '.join(models)}"
        lines.append(f"{title} is missing{who}: {reason}")
    psnrs = {label: found.summary().get("psnr", math.nan) for label, found in evaluations.items()}
    lines += [
        f"{label} does not beat {BASELINE}: as an autoencoder it is not working (yet)"
        for label, found in evaluations.items()
        if found.latents and psnrs[label] < psnrs.get(BASELINE, math.nan)
    ]
    if any(found.rfid is not None for found in evaluations.values()):
        lines.append(f"rFID@{first.num_images}: comparable only with rFID of the same N and images")
    return lines


def compared(differences: Sequence[Difference]) -> dict[tuple[str, str], list[Difference]]:
    """Those that are shown, by pair of models."""
    pairs: dict[tuple[str, str], list[Difference]] = {}
    for difference in differences:
        if difference.metric in COMPARED:
            pairs.setdefault((difference.first, difference.second), []).append(difference)
    return pairs


def signed_interval(difference: Difference) -> str:
    """The difference with its 95 % interval, such as "+1.20 [+0.95, +1.44]"."""
    digits, found = COLUMN[difference.metric].digits, difference.interval
    return f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
