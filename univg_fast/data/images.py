"""Image files: a cheap look at the header while scanning, and the full decode when a sample is made.

Images become RGB. A rotation in EXIF is not applied: UniVG-R1's boxes are those of the stored pixels.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from univg_fast.structs import Record

MAX_ASPECT = 200  # the longer side over the shorter one; Qwen2-VL's resize refuses more


class ImageProblem(ValueError):
    """Why an image cannot be used; `kind` is one of BadRecord's."""

    def __init__(self, kind: str, problem: str):
        super().__init__(problem)
        self.kind = kind


class DecodeError(ValueError):
    """An image of a record whose header looked right and whose body is damaged."""

    def __init__(self, source: str, path: str, reason: str):
        super().__init__(f"{source}: cannot decode the image {path}: {reason}")
        self.source, self.path = source, path


def probe(path: Path) -> ImageProblem | None:
    """Read the header only; None if the image is fit for use."""
    if not path.is_file():
        return ImageProblem(
            "missing", f"the image {path} does not exist (data.image_root says where relative paths start)"
        )
    try:
        with _open(path) as image:
            width, height = image.size
    except UnidentifiedImageError:
        return ImageProblem("decode", f"{path} is not an image of a known format")
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        return ImageProblem("decode", f"cannot open the image {path}: {error}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        return ImageProblem(
            "aspect",
            f"the image {path} is {width}x{height} px; expected sides at most {MAX_ASPECT} times each other",
        )
    return None


def load_images(record: Record) -> list[Image.Image]:
    """Decode every image of a record to RGB at its own size. DecodeError names the record's line and the image."""
    images = []
    for path in record.images:
        try:
            with _open(Path(path)) as image:
                images.append(image.convert("RGB"))
        except (
            OSError,
            SyntaxError,  # what Pillow raises for a broken PNG chunk
            ValueError,
            Image.DecompressionBombError,
            Image.DecompressionBombWarning,
        ) as error:
            raise DecodeError(record.source, path, str(error)) from error
    return images


def _open(path: Path) -> Any:
    """Image.open with a decompression bomb's warning (above Pillow's limit of pixels) made an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(path)
