"""Palettes and procedural textures: the surfaces from which synthetic pictures are made.

A texture is a scalar field (gradient, 1/f noise, marble, wood, stripes, checkers, cells) that is
looked up in a few colours. Everything drawn depends on the random stream alone, and as many numbers
are drawn at every resolution, so a picture is the same scene at all of them.

Letters: R resolution; fields [R, R] in [0, 1] where not said otherwise; colours [R, R, 3] in
[0, 1]; points x, y [R, R] in [-1, 1], x to the right and y down.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

# RandomState, not Generator: numpy promises that its streams never change between versions.
Random = np.random.RandomState

LEVELS = np.linspace(0, 1, 512)  # of a field, when it is looked up in colours
FINEST_LATTICE = 128  # cells across the picture; larger pictures get no finer noise


def oklch(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """sRGB colours [..., 3] in [0, 1] of lightness, chroma, hue (radians) in Ottosson's OKLCh.

    Equal steps look equal there, so random colours go together; out of gamut is clipped.
    """
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3  # noqa: E741
    m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    s = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    red = 4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s
    green = -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s
    blue = -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s
    linear = np.clip(np.stack([red, green, blue], axis=-1), 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def draw_palette(rng: Random) -> np.ndarray:
    """Six colours [6, 3] in [0, 1] from dark to light: one hue, neighbours, or all around."""
    spread = rng.choice([0.3, 0.9, 1.8, np.pi])
    hue = rng.uniform(0, 2 * np.pi) + spread * rng.uniform(-1, 1, 6)
    chroma = rng.uniform(0.03, 0.17) * rng.uniform(0.4, 1.2, 6)
    return oklch(np.linspace(0.24, 0.96, 6) + rng.uniform(-0.06, 0.04, 6), chroma, hue)


def tint(field: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Colours [R, R, 3] of a field [R, R] in [0, 1], interpolated between `stops` [n, 3]."""
    position = LEVELS * (len(stops) - 1)
    below = np.minimum(position.astype(np.intp), len(stops) - 2)
    table = stops[below] + (position - below)[:, None] * (stops[below + 1] - stops[below])
    return table.astype(np.float32).take((field * 511).astype(np.intp), axis=0)


@lru_cache(maxsize=8)
def points(resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y [R, R] of the pixel centres in [-1, 1]."""
    axis = ((np.arange(resolution, dtype=np.float32) + 0.5) * 2 / resolution - 1)[None]
    x, y = np.repeat(axis, resolution, 0), np.repeat(axis.T, resolution, 1)
    x.flags.writeable = y.flags.writeable = False
    return x, y


def turn(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def noise(rng: Random, resolution: int, cells: tuple[int, int], decay: float = 0.5) -> np.ndarray:
    """Noise [R, R], mean 0 and deviation about 1: octaves from `cells` (across, down) lattices up.

    An octave's amplitude is `decay` times that of the one below; 0.5 gives a 1/f spectrum.
    """
    total, power, amplitude = np.zeros((resolution, resolution), np.float32), 0.0, 1.0
    across, down = cells
    while max(across, down) <= FINEST_LATTICE:
        shape = (down + 3, across + 3)
        lattice = np.frombuffer(rng.bytes(shape[0] * shape[1]), np.uint8).reshape(shape)
        if max(across, down) <= resolution // 2 or power == 0:
            image = Image.fromarray(lattice.astype(np.float32))
            inside = (1, 1, across + 1, down + 1)
            smooth = image.resize((resolution,) * 2, Image.Resampling.BICUBIC, inside)
            total += np.float32(amplitude) * (np.asarray(smooth) - np.float32(127.5))
            power += 0.6 * (73.9 * amplitude) ** 2  # 73.9: deviation of a uniform byte
        across, down, amplitude = 2 * across, 2 * down, amplitude * decay
    return total / np.float32(np.sqrt(power))


def wave(phase: np.ndarray) -> np.ndarray:
    """A square wave of `phase` [R, R] in radians; grey where it is too fine for pixels."""
    footprint = sum(np.abs(slope) for slope in np.gradient(phase)) + np.float32(1e-4)
    contrast = np.clip(2 - footprint / 1.2, 0, 1)
    return 0.5 + contrast * (np.clip(0.5 + np.sin(phase) / footprint, 0, 1) - 0.5)


def ripple(phase: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(phase)


def linear_field(rng: Random, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 0.5 + 0.35 * turn(x, y, rng.uniform(0, 2 * np.pi))[0]


def radial_field(rng: Random, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x - rng.uniform(-0.8, 0.8), y - rng.uniform(-0.8, 0.8)) / 1.8


def cloud_field(rng: Random, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    cells = (rng.randint(1, 5), rng.randint(1, 5))
    return 0.5 + 0.22 * noise(rng, len(x), cells, rng.uniform(0.35, 0.62))


def marble_field(rng: Random, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    along = turn(x, y, rng.uniform(0, np.pi))[0] * rng.uniform(2, 9)
    return ripple(along + rng.uniform(0.8, 2.2) * noise(rng, len(x), (2, 2), 0.55))


def wood_field(rng: Random, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    across, along = turn(x, y, rng.uniform(0, np.pi))
    rings = np.hypot(across + rng.uniform(0.2, 1.5), 0.25 * along) * rng.uniform(10, 28)
    return ripple(rings + noise(rng, len(x), (2, 2), 0.4)) * 0.8 + 0.1


def stripe_field(rng: Random, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    bend = rng.choice([0.0, 0.0, 1.5]) * np.sin(2 * y + rng.uniform(0, 6))
    return wave(turn(x, y, rng.uniform(0, np.pi))[0] * rng.uniform(6, 28) + bend)


def checker_field(rng: Random, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    across, down = turn(x, y, rng.uniform(0, np.pi / 2))
    frequency = rng.uniform(5, 16)
    first, second = wave(across * frequency), wave(down * frequency)
    return first + second - 2 * first * second


def cell_field(rng: Random, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pebbles: how much nearer the nearest of random centres is than the second (Worley, 1996)."""
    centres = rng.uniform(-1.2, 1.2, (rng.randint(8, 22), 2)).astype(np.float32)
    squares = [(x - a) ** 2 + (y - b) ** 2 for a, b in centres]
    nearest = np.sqrt(np.partition(np.stack(squares), 1, axis=0)[:2])
    return (nearest[1] - nearest[0]) * rng.uniform(1.5, 4)


SMOOTH_FIELDS = (linear_field, radial_field, cloud_field)
TEXTURES = (cloud_field, marble_field, wood_field, stripe_field, checker_field, cell_field)


def surface(rng: Random, resolution: int, palette: np.ndarray) -> np.ndarray:
    """Colours [R, R, 3] in two neighbouring tones of the palette, or seldom in all of it.

    Half of all surfaces are plain.
    """
    tone = rng.randint(len(palette) - 1)
    stops = palette if rng.uniform() < 0.15 else palette[tone : tone + 2]
    fields = SMOOTH_FIELDS if rng.uniform() < 0.5 else TEXTURES
    field = fields[rng.randint(len(fields))](rng, *points(resolution))
    return tint(np.clip(field, 0, 1), stops)
