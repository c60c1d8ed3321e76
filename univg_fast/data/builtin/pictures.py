"""Photographs that scikit-image ships inside its wheel, and the crops that become backgrounds.

PICTURES.md names each picture with its source and licence. Files are opened in the package's folder;
scikit-image's downloader is never called, so a picture that a version does not ship is an error that names
it.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from .shapes import COLOURS

PICTURES = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)


def load_pictures() -> list[Image.Image]:
    """The photographs, RGB, in PICTURES' order. ImportError or FileNotFoundError say what to install."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ImportError("the built-in data take photographs from scikit-image: pip install scikit-image")
    folder = Path(spec.origin).parent / "data"
    missing = [name for name in PICTURES if not (folder / name).is_file()]
    if missing:
        named = ", ".join(missing)
        raise FileNotFoundError(f"{folder} lacks {named}, which 0.26.0 has: pip install scikit-image==0.26.0")
    return [Image.open(folder / name).convert("RGB") for name in PICTURES]


def make_crops(rng: np.random.Generator, number: int, side: int, contrast: float) -> np.ndarray:
    """[number, side, side, 3] uint8: random square windows, resized; each picture equally often.

    No pixel has exactly the colour of an object, so that a box can be checked from the pixels alone.
    """
    pictures = load_pictures()
    crops = np.empty((number, side, side, 3), np.uint8)
    for i in range(number):
        picture = pictures[i % len(pictures)]
        width, height = picture.size
        window = int(rng.integers(min(width, height) // 3, min(width, height) + 1))
        left = int(rng.integers(0, width - window + 1))
        top = int(rng.integers(0, height - window + 1))
        box = (left, top, left + window, top + window)
        crops[i] = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR, box, reducing_gap=2.0))
    if contrast < 1:
        crops = np.round(127.5 + contrast * (crops - 127.5)).astype(np.uint8)
    for colour in COLOURS.values():
        crops[(crops == np.array(colour, np.uint8)).all(-1)] += np.uint8(1)
    return crops[rng.permutation(number)]
