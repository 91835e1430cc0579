"""Tables for the terminal, by rich; in a file or a pipe they are plain text, and never cut."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

PIPED_WIDTH = 160  # characters, where no terminal says how many it has


def table_text(
    rows: Sequence[Sequence[str]], width: int = PIPED_WIDTH, colour: bool = False
) -> str:
    """A header and its rows, numbers aligned on the right; turned on its side where it is wider.

    A table too wide both ways is drawn all the same: a long line is better than a lost number.
    """
    console = Console(
        width=width, force_terminal=colour, color_system="auto" if colour else None,
        highlight=False, markup=False, emoji=False,
    )  # fmt: skip
    tables = [_table(rows), _table(list(zip(*rows, strict=True)))]
    wide = console.options.update(max_width=10**5)
    needed = [Measurement.get(console, wide, table).maximum for table in tables]
    fits = next((i for i in (0, 1) if needed[i] <= width), min((0, 1), key=needed.__getitem__))
    console.width = max(width, needed[fits])
    with console.capture() as captured:
        console.print(tables[fits])
    return "\n".join(line.rstrip() for line in captured.get().strip("\n").splitlines())


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints `table_text` for where standard output goes."""
    console = Console()
    width = console.width if console.is_terminal else PIPED_WIDTH
    print(table_text(rows, width, colour=console.is_terminal and not console.no_color), flush=True)


def print_help(text: str) -> None:
    """argparse's help with its flags and headings set off, if a terminal can."""
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    shown = console.render_str(text, markup=False, emoji=False)
    shown.highlight_regex(r"(?<![\w-])--?[a-z][\w-]*", "cyan")
    shown.highlight_regex(r"(?m)^\S[^\n]*:$", "bold")
    console.print(shown)


def _table(rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for number, title in enumerate(rows[0]):
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    return table
