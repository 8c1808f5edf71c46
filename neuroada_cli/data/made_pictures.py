"""Pictures of one coloured shape each, made from a seed: a task that needs no download.

A shape lies anywhere, in any size, over noise, so no two pictures are alike; training, validation and test
are drawn from random streams of their own. `image` is a PNG of 32 x 32 pixels.
"""

from __future__ import annotations

import io
import random

import numpy as np

from neuroada_cli.data.images import require_pillow
from neuroada_cli.data.reading import Row

SIDE = 32
SHAPES = ("circle", "square", "triangle")
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220)}
LABELS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
QUESTIONS = {"colour": "What colour is the shape?", "shape": "What shape is it?"}
NOISE = 60  # brightness of the background, at most


def make_pictures(split: str, count: int, seed: int = 0) -> list[Row]:
    """`count` rows of a split, the same for the same seed: `image` (bytes), `label` (one of LABELS), and a
    `question` about the picture with its `answer`.
    """
    require_pillow()
    chance = random.Random(f"shapes {split} {seed}")
    return [_row(chance) for _ in range(count)]


def _row(chance: random.Random) -> Row:
    colour, shape = chance.choice(tuple(COLOURS)), chance.choice(SHAPES)
    asked = chance.choice(tuple(QUESTIONS))
    return {
        "image": _png(_drawn(chance, shape, COLOURS[colour])),
        "label": f"{colour} {shape}",
        "question": QUESTIONS[asked],
        "answer": colour if asked == "colour" else shape,
    }


def _drawn(chance: random.Random, shape: str, colour: tuple[int, int, int]) -> np.ndarray:
    """uint8 [SIDE, SIDE, 3]."""
    noise = np.random.default_rng(chance.getrandbits(32))
    pixels = noise.integers(0, NOISE, (SIDE, SIDE, 3), dtype=np.uint8)
    radius = chance.uniform(6, 11)
    x0, y0 = (chance.uniform(radius, SIDE - 1 - radius) for _ in range(2))
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    across, down = x - x0, y - y0
    inside = {
        "circle": across**2 + down**2 <= radius**2,
        "square": np.maximum(abs(across), abs(down)) <= 0.85 * radius,
        "triangle": (down <= 0.7 * radius) & (down >= 2 * abs(across) - radius),
    }[shape]
    shade = chance.uniform(0.8, 1.0)
    pixels[inside] = [round(shade * value) for value in colour]
    return pixels


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()
