"""Pictures side by side for the eye: original, reconstruction, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from eval.protocol.results import Evaluation
from modules.image_modes import side_by_side, to_picture

ERROR_GAIN = 8  # an error of 32 levels of 255 is white
GAP = 8  # pixels between pictures
BACKGROUND, INK, FAINT_INK = (255, 255, 255), (17, 24, 39), (107, 114, 128)


def error_image(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Absolute error times ERROR_GAIN, clipped, of the RGB views of two images [K, H, W] uint8."""
    error = (side_by_side(original).int() - side_by_side(reconstruction).int()).abs() * ERROR_GAIN
    return error.clamp(max=255).to(torch.uint8)


def shown(image: Tensor) -> Image.Image:
    """image: [K, H, W] uint8 to an RGB picture of its views, side by side."""
    return to_picture(side_by_side(image))


def caption(evaluation: Evaluation, position: int) -> str:
    """Such as "31.42 dB  LPIPS 0.083", from whatever was measured of the image at `position`."""
    if position in evaluation.nan_images:
        return "not finite"
    numbers = evaluation.per_image
    parts = [f"{numbers['psnr'][position]:.2f} dB"] if "psnr" in numbers else []
    lpips = [key for key in ("lpips_vgg", "lpips_alex", "lpips_squeeze") if key in numbers]
    if lpips:
        parts.append(f"LPIPS {numbers[lpips[0]][position]:.3f}")
    return "  ".join(parts)


def comparison_grid(evaluations: Mapping[str, Evaluation]) -> Image.Image:
    """One row for each sample: original, then reconstruction and 8-fold error of each model.

    PSNR and LPIPS stand under each reconstruction. Raises ValueError when no samples were kept.
    """
    first = next(iter(evaluations.values()))
    if not first.samples:
        raise ValueError("no samples to draw: evaluate with num_samples > 0")
    pairs = ([label, f"error x{ERROR_GAIN}"] for label in evaluations)
    titles = ["original", *chain.from_iterable(pairs)]
    rows: list[list[tuple[Image.Image, str]]] = []
    for row, (position, original, *_) in enumerate(first.samples):
        cells = [(shown(original), f"image {position}")]
        for evaluation in evaluations.values():
            reconstruction = evaluation.samples[row].reconstruction
            cells.append((shown(reconstruction), caption(evaluation, position)))
            cells.append((shown(error_image(original, reconstruction)), ""))
        rows.append(cells)
    return draw_rows(titles, rows)


def draw_rows(
    titles: Sequence[str], rows: Sequence[Sequence[tuple[Image.Image, str]]]
) -> Image.Image:
    """A table of pictures with a title over each column and a caption under each picture.

    Pictures smaller than 128 pixels are enlarged without smoothing, so that captions fit.
    """
    enlarge = max(1, 128 // max(1, min(picture.width for row in rows for picture, _ in row)))
    width = max(picture.width for row in rows for picture, _ in row) * enlarge
    heights = [max(picture.height for picture, _ in row) * enlarge for row in rows]
    font = ImageFont.load_default(size=max(11, min(16, width // 14)))
    line = round(font.size * 1.6)
    *lefts, right = (GAP + column * (width + GAP) for column in range(len(titles) + 1))
    bottom = line + sum(height + line for height in heights) + GAP
    canvas = Image.new("RGB", (right, bottom), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for left, title in zip(lefts, titles, strict=True):
        draw.text((left, line // 5), _fit(title, width, font), INK, font)
    top = line
    for cells, height in zip(rows, heights, strict=True):
        for left, (picture, text) in zip(lefts, cells, strict=True):
            size = (picture.width * enlarge, picture.height * enlarge)
            canvas.paste(picture.resize(size, Image.Resampling.NEAREST), (left, top))
            draw.text((left, top + height + line // 8), _fit(text, width, font), FAINT_INK, font)
        top += height + line
    return canvas


def _fit(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """The end of a text that is too long: paths differ there."""
    ends = ("…" + text[start:] for start in range(1, len(text)))
    return next((part for part in chain([text], ends) if font.getlength(part) <= width), "…")
