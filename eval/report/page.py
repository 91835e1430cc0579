"""HTML pages in one self-contained file, from templates/.

jinja2 escapes every text that comes from outside (file names, labels); pictures are embedded.
"""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from eval.report.grid import ERROR_GAIN, error_image, shown

FOLDER = Path(__file__).parent / "templates"
ERROR_QUALITY = 80  # of the error maps' lossy WebP; pictures to be judged are lossless


class Cell(NamedTuple):
    """One number in a table: its text, a smaller line under it, whether it is the best.

    share: of the largest number of its column, in [0, 1], for a bar behind it.
    """

    text: str
    detail: str = ""
    best: bool = False
    share: float | None = None


class Picture(NamedTuple):
    """An image [K, H, W] uint8 with its title and caption, and optionally what to compare it with.

    With `original`, the absolute error times ERROR_GAIN is shown under it.
    """

    image: Tensor
    title: str
    caption: str = ""
    original: Tensor | None = None


def render(template: str, **values: Any) -> str:
    """A page as text. Nothing in it is loaded from anywhere; light and dark themes."""
    return _environment().get_template(template).render(**values)


def write_page(file: Path, template: str, **values: Any) -> None:
    """Writes a page; what of a name is no Unicode is written with backslashes."""
    file.write_text(render(template, **values), encoding="utf-8", errors="backslashreplace")


def data_uri(picture: Image.Image, lossless: bool = True) -> str:
    """A picture as a WebP data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=lossless, quality=50 if lossless else ERROR_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals |= {
        "style": Markup((FOLDER / "report.css").read_text(encoding="utf-8")),
        "data_uri": data_uri,
        "shown": shown,
        "error_image": error_image,
        "ERROR_GAIN": ERROR_GAIN,
    }
    return environment
