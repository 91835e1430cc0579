"""Shapes with material, light and shadow: the objects of which synthetic pictures are made.

Letters as in textures.py: R resolution; canvases [R, R, 3] in [0, 1], changed in place by what
paints on them; positions in [-1, 1], x to the right and y down.
"""

from __future__ import annotations

import string
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from modules.data.images.textures import Random, points, surface, turn

OVERSAMPLING = 4  # masks are drawn this much larger and averaged down: their edges are smooth
LETTERS = string.ascii_letters + string.digits + "&?!@#%"


def outline(rng: Random, kind: str) -> np.ndarray:
    """A closed polygon [n, 2] around the origin, of radius about 1."""
    if kind == "box":
        return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [1, rng.uniform(0.3, 1)]
    if kind == "polygon":
        angles = np.linspace(0, 2 * np.pi, rng.randint(3, 9), endpoint=False)
        radii = 1 - rng.choice([0, 0.5]) * (np.arange(len(angles)) % 2)
    else:
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        wobble = rng.uniform(0, 0.22) if kind == "blob" else 0
        radii = 1 + wobble * sum(np.sin(k * angles + rng.uniform(0, 6)) for k in (2, 3, 5))
    return np.stack([np.cos(angles), np.sin(angles)], -1) * radii[:, None]


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def stencil(resolution: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty mask OVERSAMPLING times as large, and what draws on it."""
    large = Image.new("L", (resolution * OVERSAMPLING,) * 2)
    return large, ImageDraw.Draw(large)


def shape_mask(
    rng: Random, resolution: int, kind: str, centre: np.ndarray, radius: float
) -> Image.Image:
    """Coverage (mode L, R x R) of a ball, ellipse, box, polygon, blob, stroke or glyph."""
    large, draw = stencil(resolution)
    half = resolution * OVERSAMPLING / 2
    x, y = (centre + 1) * half

    if kind == "ball":
        box = np.concatenate([centre - radius, centre + radius])
        draw.ellipse(list((box + 1) * large.width / 2), 255)
    elif kind == "glyph":
        size = max(8, round(1.8 * radius * 16) * large.width // 32)
        draw.text((x, y), LETTERS[rng.randint(len(LETTERS))], 255, font(size), anchor="mm")
        large = large.rotate(rng.uniform(-30, 30), center=(x, y))
    elif kind == "stroke":
        time, turns = np.linspace(-1, 1, 24), rng.uniform(-2, 2, 3)
        bend = rng.uniform(0.1, 0.6) * np.sin(turns[0] * 2 * time + turns[1])
        path = np.stack(turn(time, bend, turns[2]), -1) * radius * 1.6
        dots = [(x + a * half, y + b * half) for a, b in path]
        draw.line(dots, 255, max(4, round(rng.uniform(0.04, 0.25) * radius * half)), "curve")
    else:
        path = outline(rng, kind) * [1, rng.uniform(0.5, 1)]
        path = np.stack(turn(*path.T, rng.uniform(0, 2 * np.pi)), -1) * radius
        draw.polygon([(x + a * half, y + b * half) for a, b in path], 255)
    return large.reduce(OVERSAMPLING)


def cut_out(rng: Random, resolution: int) -> Image.Image:
    """Alpha (mode L): of a quarter opaque, else of a shape with sharp, soft or glassy edges."""
    kind = rng.choice(["ellipse", "blob", "polygon", "glyph"])
    mask = shape_mask(rng, resolution, kind, rng.uniform(-0.3, 0.3, 2), rng.uniform(0.5, 1))
    soft = mask.filter(ImageFilter.GaussianBlur(float(rng.choice([0, 0, 0.05]) * resolution)))
    least = int(rng.choice([0, 0, 100, 255]))
    return soft.point([least + value * (255 - least) // 255 for value in range(256)])


def as_field(mask: Image.Image) -> np.ndarray:
    return np.asarray(mask, dtype=np.float32) * np.float32(1 / 255)


def blend(canvas: np.ndarray, fill: np.ndarray, mask: np.ndarray) -> None:
    """Lays `fill` ([R, R, 3] or a colour) over `canvas` in place where `mask` [R, R] covers."""
    canvas += mask[..., None] * (fill.astype(np.float32) - canvas)


def cast_shadow(canvas: np.ndarray, mask: Image.Image, light: np.ndarray, depth: float) -> None:
    """Darkens `canvas` in place by the blurred mask, moved away from the light by `depth`."""
    reach = depth * len(canvas) / 2
    soft = mask.filter(ImageFilter.GaussianBlur(reach / 2))
    offset = (1, 0, light[0] * reach, 0, 1, light[1] * reach)
    moved = soft.transform(soft.size, Image.Transform.AFFINE, offset, Image.Resampling.BILINEAR)
    canvas *= 1 - 0.55 * as_field(moved)[..., None]


def relief(mask: Image.Image, light: np.ndarray, roundness: float) -> np.ndarray:
    """Brightness [R, R] around 1 of a shape that swells: its blurred mask is its height."""
    reach = roundness * mask.width / 2
    down, across = np.gradient(as_field(mask.filter(ImageFilter.GaussianBlur(reach))))
    slope = (across * light[0] + down * light[1]) * reach
    return 1 - np.clip(1.3 * slope, -0.65, 0.65)


def ball_shade(resolution: int, centre: np.ndarray, radius: float, light: np.ndarray) -> np.ndarray:
    """Brightness [R, R] of a sphere under `light`, with a highlight."""
    x, y = points(resolution)
    a, b = (x - np.float32(centre[0])) / radius, (y - np.float32(centre[1])) / radius
    facing = np.sqrt(np.clip(1 - a * a - b * b, 0, 1)) * 0.7 + 0.7 * (a * light[0] + b * light[1])
    lambert = np.clip(facing, 0, 1)
    return (0.3 + 0.85 * lambert + 1.2 * lambert**24).astype(np.float32)


def add_object(rng: Random, canvas: np.ndarray, palette: np.ndarray, light: np.ndarray) -> None:
    """Paints one shape with its shadow, material and shading over `canvas` in place."""
    resolution = len(canvas)
    kind = rng.choice(["ball", "ellipse", "box", "polygon", "blob", "stroke", "glyph"])
    centre, radius = rng.uniform(-0.85, 0.85, 2), rng.uniform(0.15, 0.6)
    fill = surface(rng, resolution, palette)
    mask = shape_mask(rng, resolution, kind, centre, radius)
    if kind == "ball":
        shade = ball_shade(resolution, centre, radius, light)
    else:
        shade = relief(mask, light, rng.uniform(0.03, 0.12)) * rng.uniform(0.85, 1.15)
    cast_shadow(canvas, mask, light, rng.uniform(0.05, 0.25))
    blend(canvas, np.clip(fill * shade[..., None], 0, 1), as_field(mask))


def add_bar(rng: Random, canvas: np.ndarray, palette: np.ndarray) -> None:
    """Paints a rectangle in one colour over `canvas` in place."""
    large, draw = stencil(len(canvas))
    left, top, width, height = rng.uniform(0, 0.8, 4) * large.width
    draw.rectangle((left, top, left + width, top + height / 3), 255)
    blend(canvas, palette[rng.randint(6)], as_field(large.reduce(OVERSAMPLING)))


def add_letters(rng: Random, canvas: np.ndarray, ink: np.ndarray) -> None:
    """Prints lines of letters over `canvas` in place, half of the time aslant."""
    large, draw = stencil(len(canvas))
    left, top = rng.uniform(0.02, 0.2, 2)
    while top < 0.9:
        size = rng.choice([0.12, 0.18, 0.3, 0.5])
        for i, letter in enumerate(rng.choice(list(LETTERS), rng.randint(2, 9))):
            # One by one, evenly spaced: kerning differs between builds of Pillow.
            x, y = np.array((left + (i + 0.5) * 0.62 * size, top + size / 2)) * large.width
            draw.text((x, y), letter, 255, font(int(size * large.width)), "mm")
        top += size * rng.uniform(0.9, 1.4)
    tilted = large.rotate(rng.choice([0, rng.uniform(-40, 40)]), Image.Resampling.BILINEAR)
    blend(canvas, ink, as_field(tilted.reduce(OVERSAMPLING)))


def draw_light(rng: Random) -> np.ndarray:
    """Direction [2] towards the light: from above, to the left or to the right."""
    angle = rng.uniform(-0.85, -0.15) * np.pi
    return np.array([np.cos(angle), np.sin(angle)])
