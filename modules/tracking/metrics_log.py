"""metrics.jsonl: one JSON object a line, `step` first, in the order in which things happened."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from modules.output.durable import replacing
from modules.output.run_files import DAMAGED_METRICS

logger = logging.getLogger(__name__)

Row = dict[str, float]

MOST_ROWS = 4000  # of training that are kept in memory; a curve shows 600


class MetricsLog:
    """Appends rows and forgets those that a resumed run is going to write again.

    The file is read once, by `keep_up_to`. In memory are all validations, and training's rows
    spread evenly over the run, so that neither a report nor a resume takes longer and longer.
    Numbers that are not finite are null in the file, which is JSON for every reader, and NaN here.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.unwritten = b""  # while the disk is full
        self._forget()

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one row at once, so that a killed run loses none.

        Raises OSError where the disk is full; the row is then written together with the next one.
        """
        row = {"step": step, **values}
        self._remember(row)
        plain = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self.unwritten += json.dumps(plain, allow_nan=False).encode() + b"\n"
        with self.file.open("ab", buffering=0) as stream:
            size, left = stream.tell(), self.unwritten
            try:
                while left:
                    left = left[stream.write(left) :]
            except OSError:
                stream.truncate(size)
                raise
        self.unwritten = b""

    def rows(self) -> list[Row]:
        """All validations and at most MOST_ROWS rows of training, by step."""
        return sorted([*self.training, *self.validations], key=lambda row: row["step"])

    def keep_up_to(self, step: int) -> None:
        """Drops the rows after `step`: the run that resumes there writes them again.

        What is no row (damage, notes) is left out and said; the file as it was is kept beside.
        """
        self._forget()
        foreign = 0
        with replacing(self.file) as partial:
            with partial.open("wb") as stream:
                for line in _lines(self.file):
                    row = _parsed(line)
                    if row is None:
                        foreign += 1
                    elif row["step"] <= step:
                        self._remember(row)
                        stream.write(line)
            if foreign:
                aside = self.file.with_name(DAMAGED_METRICS)
                shutil.copyfile(self.file, aside)
                logger.warning("%d lines of %s are no rows of a run and were left out; the file as "
                               "it was is %s", foreign, self.file, aside)  # fmt: skip

    def _forget(self) -> None:
        self.training: list[Row] = []  # every `every`-th of the `seen`
        self.validations: list[Row] = []
        self.seen, self.every = 0, 1

    def _remember(self, row: Row) -> None:
        if any(name.startswith("val/") for name in row):
            self.validations.append(row)
            return
        if self.seen % self.every == 0:
            self.training.append(row)
        self.seen += 1
        if len(self.training) > MOST_ROWS:
            self.training, self.every = self.training[::2], 2 * self.every


def whole_validations(rows: Iterable[Row]) -> list[Row]:
    """The rows of validations; one that was written by hand need not have all of their numbers."""
    return [row for row in rows if {"val/psnr", "val/num_images"} <= row.keys()]


def best_psnr(validations: Sequence[Row]) -> Row:
    """The row with the largest val/psnr; NaN is the worst."""
    return max(validations, key=lambda row: (math.isfinite(row["val/psnr"]), row["val/psnr"]))


def read_rows(file: Path) -> list[Row]:
    """Every row of a metrics.jsonl, whatever else the file holds."""
    return [row for line in _lines(file) if (row := _parsed(line)) is not None]


def _lines(file: Path) -> Iterator[bytes]:
    """Every complete line; the last one is none if a kill cut it short."""
    if file.exists():
        with file.open("rb") as stream:
            yield from (line for line in stream if line.endswith(b"\n"))


def _parsed(line: bytes) -> Row | None:
    """The numbers of a row; None for a line that is none, or belongs to no step."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or type(found.get("step")) is not int:
        return None
    return {name: math.nan if value is None else value for name, value in found.items()
            if value is None or type(value) in (int, float)}  # fmt: skip


def comparable(rows: list[Row], since: int) -> list[Row]:
    """`rows` without the validations before the last one up to step `since`.

    Those were of other images; that one measured the weights of step `since` anew.
    """
    validated = [i for i, row in enumerate(rows) if row["step"] <= since and "val/psnr" in row]
    first = validated[-1] if validated else 0
    older = ({k: v for k, v in row.items() if not k.startswith("val/")} for row in rows[:first])
    return [*older, *rows[first:]]
