"""Summaries as rows of text, for a terminal, Markdown or HTML, and what to know beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from eval.metrics.columns import COLUMN, COLUMNS
from eval.protocol.intervals import Difference
from eval.protocol.results import Evaluation

BEST = "*"
BASELINE = "downsample:8"


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


def rows(evaluations: Mapping[str, Evaluation]) -> list[list[str]]:
    """A header and one row a model; BEST stands before the best of each column."""
    keys = shown_keys(evaluations)
    best = {key: best_models(evaluations, key) for key in keys}
    return [
        ["model", *(COLUMN[key].heading for key in keys)],
        *(
            [label, *(BEST * (label in best[key]) + COLUMN[key].format(found.summary().get(key))
                      for key in keys)]
            for label, found in evaluations.items()
        ),
    ]  # fmt: skip


def markdown_table(evaluations: Mapping[str, Evaluation]) -> str:
    """The same as a Markdown table, the best of each column in bold."""
    header, *body = rows(evaluations)
    cells = [
        [
            label.replace("|", "\\|"),
            *(f"**{cell[1:]}**" if cell.startswith(BEST) else cell for cell in numbers),
        ]
        for label, *numbers in body
    ]
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *cells])


def meanings(keys: Sequence[str]) -> str:
    """What the columns are, in one paragraph; those that mean the same together."""
    titles: dict[str, list[str]] = {}
    for key in keys:
        titles.setdefault(COLUMN[key].meaning, []).append(COLUMN[key].title)
    return "; ".join(f"{', '.join(names)}: {meaning}" for meaning, names in titles.items()) + "."


def notes(evaluations: Mapping[str, Evaluation], name_of: Callable[[int], str]) -> list[str]:
    """What a reader must know beside the numbers: missing metrics, NaN and unreadable images.

    name_of: an image's name by its position.
    """
    lines = []
    first = next(iter(evaluations.values()))
    for position, reason in first.unreadable.items():
        lines.append(f"unreadable, left out: {name_of(position)}: {reason}")
    missing: dict[tuple[str, str], list[str]] = {}
    for label, evaluation in evaluations.items():
        total = evaluation.num_images + len(evaluation.nan_images)
        if evaluation.nan_images:
            count = len(evaluation.nan_images)
            lines.append(f"{label}: {count} of {total} images NaN, left out of its means")
        for key, reason in evaluation.missing.items():
            missing.setdefault((COLUMN[key].title, reason), []).append(label)
    for (title, reason), models in missing.items():
        who = "" if len(models) == len(evaluations) else f" for {', '.join(models)}"
        lines.append(f"{title} is missing{who}: {reason}")
    lines += _not_working(evaluations)
    if any("rfid" in evaluation.summary() for evaluation in evaluations.values()):
        lines.append(f"rFID@{first.num_images}: comparable only with rFID of the same N and images")
    return lines


def _not_working(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """A line for each autoencoder that a resize by 8 and back outdoes."""
    baseline = evaluations.get(BASELINE)
    if baseline is None or "psnr" not in baseline.summary():
        return []
    limit = baseline.summary()["psnr"]
    return [
        f"{label} does not beat {BASELINE}: as an autoencoder it is not working (yet)"
        for label, evaluation in evaluations.items()
        if evaluation.latents and evaluation.summary()["psnr"] < limit
    ]


def difference_lines(differences: Sequence[Difference], metrics: Sequence[str]) -> list[str]:
    """One line for each pair: the differences, their intervals, and who is better at what."""
    pairs: dict[str, list[str]] = {}
    for difference in differences:
        if difference.metric in metrics:
            verdict = f"{difference.better} better" if difference.better else "undecided"
            text = f"{COLUMN[difference.metric].title} {signed_interval(difference)} ({verdict})"
            pairs.setdefault(f"{difference.first} - {difference.second}", []).append(text)
    return [f"{pair}: {', '.join(texts)}" for pair, texts in pairs.items()]


def signed_interval(difference: Difference) -> str:
    """The difference with its 95 % interval, such as "+1.20 [+0.95, +1.44]"."""
    digits, found = COLUMN[difference.metric].digits, difference.interval
    return f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
