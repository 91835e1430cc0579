"""Procedural images, so that training, tests and examples run where there is no data.

Every picture is a small scene (hills, still life, checkered floor, poster, plain texture) painted
back to front: a material fills a mask, a light shades it, a soft shadow falls on what lies behind.
Statistics are those of photographs in the large: a spectrum near 1/f, sharp occluding
edges, smooth shading, few hues in one picture and all hues in the set.

Letters as in textures.py: R resolution; canvases [R, R, 3] in [0, 1], changed in place by
what paints on them; positions in [-1, 1], x to the right and y down.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from modules.data.images.shapes import add_bar, add_letters, add_object, blend, cut_out, draw_light
from modules.data.images.textures import (
    TEXTURES,
    Random,
    draw_palette,
    linear_field,
    noise,
    points,
    surface,
    tint,
    turn,
    wave,
)
from modules.errors import ArgumentError
from modules.seeding import seed_for

MIN_RESOLUTION = 16


class SyntheticImages:
    """`num_images` generated pictures; picture `index` depends on `seed` and `index` alone.

    The same scene is drawn at every resolution, with finer texture at larger ones. alpha: most
    pictures are cut out by a shape, mode RGBA.
    Raises ArgumentError for a resolution below 16.
    """

    name = "synthetic"

    def __init__(
        self, num_images: int, resolution: int, seed: int = 0, alpha: bool = False
    ) -> None:
        if resolution < MIN_RESOLUTION:
            raise ArgumentError(
                f"--resolution={resolution} must be at least {MIN_RESOLUTION} for the synthetic "
                "set; raise it, or train on images of your own"
            )
        self.num_images, self.resolution = num_images, resolution
        self.seed, self.alpha = seed, alpha

    def __len__(self) -> int:
        return self.num_images

    def open(self, index: int, target: int | None = None) -> Image.Image:
        """Picture `index`, always exactly resolution x resolution; IndexError beyond the end."""
        if not 0 <= index < self.num_images:
            raise IndexError(f"image {index} of {self.num_images}")

        bits = seed_for("synthetic", self.seed, index)
        rng = Random([bits & 0xFFFFFFFF, bits >> 32])
        scene = SCENES[rng.choice(len(SCENES), p=SCENE_SHARES)]
        canvas = finish(rng, scene(rng, self.resolution, draw_palette(rng)))
        picture = Image.fromarray((canvas * 255 + 0.5).astype(np.uint8))
        if self.alpha:
            picture.putalpha(cut_out(rng, self.resolution))
        return picture

    def label(self, index: int) -> str:
        return f"{self.name}/{self.seed}/{index}"

    def shape(self, index: int) -> tuple[int, int]:
        return self.resolution, self.resolution

    def fingerprint(self) -> str:
        return f"{self.name}/{self.seed}/{self.num_images}/{self.resolution}"


def collage(rng: Random, resolution: int, palette: np.ndarray) -> np.ndarray:
    canvas, light = surface(rng, resolution, palette), draw_light(rng)
    for _ in range(rng.randint(2, 7)):
        add_object(rng, canvas, palette, light)
    return canvas


def close_up(rng: Random, resolution: int, palette: np.ndarray) -> np.ndarray:
    """One texture that fills the frame, lit as a relief."""
    field = TEXTURES[rng.randint(len(TEXTURES))](rng, *points(resolution))
    tone = rng.randint(len(palette) - 2)
    stops = palette if rng.uniform() < 0.3 else palette[tone : tone + 3]
    down, across = np.gradient(np.clip(field, 0, 1))
    light = draw_light(rng) * rng.uniform(0, 1.2)
    shade = 1 - np.clip(across * light[0] + down * light[1], -0.4, 0.4)
    return tint(np.clip(field, 0, 1), stops) * shade[..., None]


def hills(rng: Random, resolution: int, palette: np.ndarray) -> np.ndarray:
    """A sky with a sun and clouds behind ridges that darken and roughen as they come nearer."""
    x, y = points(resolution)
    order = palette if rng.uniform() < 0.8 else palette[::-1]
    canvas = tint(np.clip(0.55 + 0.45 * y, 0, 1), order[3:])
    sun, radius = rng.uniform([-0.8, -0.9], [0.8, -0.1]), rng.uniform(0.06, 0.25)
    glow = np.hypot(x - sun[0], y - sun[1]) - radius
    blend(canvas, order[5], 0.6 * np.exp(-4 * np.clip(glow, 0, 4)))
    blend(canvas, order[5] * 0.5 + 0.5, np.clip(0.5 - glow * resolution / 2, 0, 1))
    clouds = np.clip(0.5 * noise(rng, resolution, (2, 5)) - rng.uniform(-0.2, 0.6), 0, 0.9)
    blend(canvas, order[5] * 0.3 + 0.7, clouds)

    ridges, horizon = rng.randint(2, 6), rng.uniform(-0.4, 0.3)
    for nearness in np.linspace(0.2, 1, ridges):
        profile = noise(rng, resolution, (rng.randint(1, 5), 1), 0.45)[0]
        height = y - horizon - 0.7 * nearness + 0.25 - 0.16 * profile
        rough = 1 + 0.12 * nearness * noise(rng, resolution, (3, 8), 0.65)
        tone = order[3] * (1 - nearness) + order[rng.randint(2)] * nearness
        ground = tone * (rough + 0.25 * np.clip(height, 0, 1))[..., None]
        blend(canvas, np.clip(ground, 0, 1), np.clip(0.5 + height * resolution / 2, 0, 1))
    return canvas


def floor(rng: Random, resolution: int, palette: np.ndarray) -> np.ndarray:
    """Objects before a wall, on a checkered or striped floor in perspective."""
    x, y = points(resolution)
    horizon, light = rng.uniform(-0.5, 0.2), draw_light(rng)
    canvas = surface(rng, resolution, palette)
    depth = 1 / np.clip(y - horizon, 0.02, 2)
    across, away = turn(x * depth, depth * rng.uniform(0.8, 1.5), rng.uniform(-0.6, 0.6))
    frequency = rng.uniform(2, 6)
    tiles, rows = wave(across * frequency), wave(away * frequency)
    tiles = tiles + rows - 2 * tiles * rows if rng.uniform() < 0.6 else tiles
    ground = tint(tiles, palette[np.sort(rng.choice(len(palette), 2, replace=False))])
    ground = ground * np.clip(1.05 - 0.06 * depth, 0.4, 1)[..., None]
    blend(canvas, ground, np.clip(0.5 + (y - horizon) * resolution / 2, 0, 1))
    for _ in range(rng.randint(1, 5)):
        add_object(rng, canvas, palette, light)
    return canvas


def poster(rng: Random, resolution: int, palette: np.ndarray) -> np.ndarray:
    """Lines of letters of several sizes on a plain or textured ground, with a bar or two."""
    canvas, ink = surface(rng, resolution, palette), palette[rng.choice([0, 5])]
    for _ in range(rng.randint(0, 3)):
        add_bar(rng, canvas, palette)
    add_letters(rng, canvas, ink)
    return canvas


def finish(rng: Random, canvas: np.ndarray) -> np.ndarray:
    """Uneven light, exposure and a little grain; [R, R, 3] clipped to [0, 1]."""
    resolution = len(canvas)
    light = 1 + 0.12 * linear_field(rng, *points(resolution)) * rng.choice([-1, 0, 1])
    light = light * rng.uniform(0.85, 1.1)
    grain = rng.choice([0, 0, 0.003, 0.006]) * noise(rng, resolution, (64, 64))
    return np.clip(canvas * light[..., None] + grain[..., None], 0, 1)


SCENES = (collage, close_up, hills, floor, poster)
SCENE_SHARES = (0.4, 0.12, 0.2, 0.2, 0.08)
