"""Image files: a cheap look at the header while scanning, and the full decode when a sample is made.

Images become RGB. A rotation in EXIF is not applied: UniVG-R1's boxes are those of the stored pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from PIL import Image, UnidentifiedImageError

from univg_fast.structs import Record

from .errors import DecodeError, Refused

UNREADABLE = (
    OSError,  # also what a truncated body raises
    SyntaxError,  # a broken PNG chunk
    ValueError,  # also a path with a NUL in it
    Image.DecompressionBombError,
)
PROBE_THREADS = 16
MAX_ASPECT = 200  # the longer side over the shorter one; Qwen2-VL's resize refuses more


def probe(path: str) -> Refused | None:
    """Read the header only: None if the image is fit for use, else missing, decode or aspect."""
    try:
        with _open(path) as image:
            width, height = image.size
    except FileNotFoundError:
        where = "data.image_root says where relative paths start"
        return Refused("missing", f"the image {path} does not exist ({where})")
    except UnidentifiedImageError:
        return Refused("decode", f"{path} is not an image of a known format")
    except UNREADABLE as error:
        return Refused("decode", f"cannot open the image {path}: {error}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        size = f"{width}x{height} px; a side may be {MAX_ASPECT} times the other"
        return Refused("aspect", f"the image {path} is {size}")
    return None


def probe_all(paths: Iterable[str]) -> dict[str, Refused]:
    """The images that are not fit for use. Each is opened once; threads hide a network disk's latency."""
    unique = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(PROBE_THREADS) as pool:
        found = zip(unique, pool.map(probe, unique), strict=True)
        return {path: problem for path, problem in found if problem is not None}


def load_images(record: Record) -> list[Image.Image]:
    """Decode the images of a record to RGB at their own sizes. DecodeError names the line and the image."""
    images = []
    for path in record.images:
        try:
            with _open(path) as image:
                images.append(image.convert("RGB"))
        except UNREADABLE as error:
            raise DecodeError(record.source, path, str(error)) from error
    return images


def _open(path: str) -> Image.Image:
    """Image.open, refusing at once what Pillow only warns of: an image so large that it may be an attack."""
    image = Image.open(path)
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        image.close()
        raise Image.DecompressionBombError(
            f"{image.width}x{image.height} px, more than Pillow's MAX_IMAGE_PIXELS ({Image.MAX_IMAGE_PIXELS})"
        )
    return image
