"""Image files: a cheap look at the header while scanning, and the full decode when a sample is made.

Images become RGB. A rotation in EXIF is not applied: UniVG-R1's boxes are those of the stored pixels.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from univg_fast.structs import Record

from .errors import DecodeError, Refused

UNREADABLE = (
    OSError,  # also what a truncated body raises
    SyntaxError,  # a broken PNG chunk
    ValueError,  # also a path with a NUL in it
    Image.DecompressionBombError,
)
MAX_ASPECT = 200  # the longer side over the shorter one; Qwen2-VL's resize refuses more


def probe(path: Path) -> None:
    """Read the header only. Refused (missing, decode or aspect) if the image is not fit for use."""
    try:
        with _open(path) as image:
            width, height = image.size
    except FileNotFoundError:
        where = "data.image_root says where relative paths start"
        raise Refused("missing", f"the image {path} does not exist ({where})") from None
    except UnidentifiedImageError:
        raise Refused("decode", f"{path} is not an image of a known format") from None
    except UNREADABLE as error:
        raise Refused("decode", f"cannot open the image {path}: {error}") from error
    if max(width, height) > MAX_ASPECT * min(width, height):
        shape = f"{width}x{height} px"
        raise Refused("aspect", f"the image {path} is {shape}; one side may be {MAX_ASPECT} times the other")


def load_images(record: Record) -> list[Image.Image]:
    """Decode the images of a record to RGB at their own sizes. DecodeError names the line and the image."""
    images = []
    for path in record.images:
        try:
            with _open(Path(path)) as image:
                images.append(image.convert("RGB"))
        except UNREADABLE as error:
            raise DecodeError(record.source, path, str(error)) from error
    return images


def _open(path: Path) -> Image.Image:
    """Image.open, refusing at once what Pillow only warns of: an image so large that it may be an attack."""
    image = Image.open(path)
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        image.close()
        raise Image.DecompressionBombError(
            f"{image.width}x{image.height} px, more than Pillow's MAX_IMAGE_PIXELS ({Image.MAX_IMAGE_PIXELS})"
        )
    return image
