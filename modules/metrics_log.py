"""metrics.jsonl: one JSON object a line, `step` first, in the order in which things happened."""

from __future__ import annotations

import json
import os
from pathlib import Path


class MetricsLog:
    """Appends rows and forgets those that a resumed run is going to write again."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def append(self, step: int, values: dict[str, float]) -> None:
        """Writes one row at once, so that a killed run loses none."""
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **values}) + "\n")

    def rows(self) -> list[dict[str, float]]:
        """Every complete row; a last line that a kill cut short is not one."""
        if not self.file.exists():
            return []
        lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def keep_up_to(self, step: int) -> None:
        """Drops the rows after `step`: the run that resumes there writes them again."""
        rows = [row for row in self.rows() if row["step"] <= step]
        partial = self.file.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        os.replace(partial, self.file)


def comparable(rows: list[dict[str, float]], since: int) -> list[dict[str, float]]:
    """`rows` without the validations before the last one up to step `since`.

    Those were of other images; that one measured the weights of step `since` anew.
    """
    validated = [i for i, row in enumerate(rows) if row["step"] <= since and "val/psnr" in row]
    first = validated[-1] if validated else 0
    older = ({k: v for k, v in row.items() if not k.startswith("val/")} for row in rows[:first])
    return [*older, *rows[first:]]
