"""Pieces of a self-contained HTML report: the page, tables, rows of pictures.

Every text that comes from outside (file names, labels) is escaped here, so callers pass plain text.
Functions return HTML; `page` puts it together. Charts are in `eval.report.charts`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image
from torch import Tensor

from eval.report.grid import error_image, to_picture

STYLE = Path(__file__).with_name("report.css")
ERROR_QUALITY = 80  # of the error maps' lossy WebP; pictures to be judged are lossless


@dataclass(frozen=True)
class Cell:
    """One number in a table: its text, a smaller line under it, and whether it is the best."""

    text: str
    detail: str = ""
    best: bool = False


@dataclass(frozen=True)
class Picture:
    """An image [3, H, W] uint8 with its title and caption, and optionally what to compare it with.

    With `original`, the 8-fold absolute error is shown under it.
    """

    image: Tensor
    title: str
    caption: str = ""
    original: Tensor | None = None


def page(
    title: str, sections: Sequence[tuple[str, str]], *, lead: str, stamp: Sequence[str]
) -> str:
    """A whole document: a heading, sections of (heading, HTML), and the stamp as its footer.

    Sections with empty HTML are left out. Nothing is loaded from anywhere; light and dark themes.
    """
    body = "".join(
        f"<section><h2>{escape(heading)}</h2>{html}</section>" for heading, html in sections if html
    )
    footer = "".join(f"<p>{escape(line)}</p>" for line in stamp)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>"
        f'<body><main><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>'
        f"{body}<footer>{footer}</footer></main></body></html>\n"
    )


def metrics_table(header: Sequence[str], rows: Mapping[str, Sequence[Cell]]) -> str:
    """A table with one row a name; it scrolls sideways where the screen is narrow."""
    head = "".join(f"<th>{escape(title)}</th>" for title in header)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(map(_cell, cells))}</tr>'
        for name, cells in rows.items()
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def image_grid(rows: Sequence[tuple[str, Sequence[Picture]]]) -> str:
    """Rows of (heading, pictures), embedded; they wrap to two a line on a phone."""
    return "".join(
        f'<div class="row" style="--n:{len(pictures)}"><h3>{escape(heading)}</h3>'
        f"{''.join(map(_picture, pictures))}</div>"
        for heading, pictures in rows
    )


def wide_picture(picture: Image.Image, title: str) -> str:
    """A picture that is drawn in full and scrolls sideways where the screen is narrow."""
    size = f'width="{picture.width}" height="{picture.height}" loading="lazy"'
    return f'<div class="scroll"><img {size} alt="{escape(title)}" src="{data_uri(picture)}"></div>'


def note(text: str) -> str:
    """A small explaining paragraph."""
    return f'<p class="note">{escape(text)}</p>'


def bullet_list(lines: Sequence[str]) -> str:
    """A list of plain texts; nothing for none."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="notes">{items}</ul>' if items else ""


def charts(figures: Sequence[str]) -> str:
    """Figures from `eval.report.charts`, side by side where there is room."""
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def data_uri(picture: Image.Image, lossless: bool = True) -> str:
    """A picture as a WebP data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=lossless, quality=50 if lossless else ERROR_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _cell(cell: Cell) -> str:
    detail = f'<span class="interval">{escape(cell.detail)}</span>' if cell.detail else ""
    best = ' class="best"' if cell.best else ""
    return f"<td{best}>{escape(cell.text)}{detail}</td>"


def _picture(picture: Picture) -> str:
    height, width = picture.image.shape[-2:]
    size = f'width="{width}" height="{height}" loading="lazy"'
    shown = (
        f'<img {size} alt="{escape(picture.title)}" src="{data_uri(to_picture(picture.image))}">'
    )
    if picture.original is not None:
        error = to_picture(error_image(picture.original, picture.image))
        shown += f'<img {size} alt="8-fold error" src="{data_uri(error, lossless=False)}">'
    caption = f"<b>{escape(picture.title)}</b><span>{escape(picture.caption)}</span>"
    return f"<figure><figcaption>{caption}</figcaption>{shown}</figure>"
