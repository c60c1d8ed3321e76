"""Image files: a cheap look at the header while scanning, and the full decode when a sample is made.

What every file becomes, for the scan and the model alike: RGB, 8 bits. Transparency lies on white; a palette is looked
up; 16 bits keep their upper 8; of several frames the first counts. A rotation in EXIF is ignored, as in UniVG-R1, whose
boxes are those of the stored pixels, unless `exif` is "apply".
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
from PIL import Image, UnidentifiedImageError

from univg_fast.structs import Record

from .coordinates import MAX_ASPECT, Size
from .errors import DecodeError, Refused

UNREADABLE = (
    OSError,  # also what a truncated body raises
    SyntaxError,  # a broken PNG chunk
    ValueError,  # also a path with a NUL in it
    struct.error,  # numbers cut short in a header
    TypeError,  # these four: damaged tables of TIFF, GIF, EXIF and others inside of Pillow
    IndexError,
    KeyError,
    AttributeError,
    OverflowError,
    ZeroDivisionError,
    MemoryError,
    EOFError,
    Image.DecompressionBombError,
)
PROBE_THREADS = 16
REMEMBERED = 1 << 17  # headers kept: what many records share is opened once, and memory stays bounded
ORIENTATION = 0x0112
TURNS = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)


@dataclass(frozen=True)
class Header:
    """What a file says before it is decoded. `size` is that of the stored pixels."""

    size: Size
    orientation: int = 1

    def shown(self, exif: str) -> Size:
        """(width, height) of the image that `load_image` gives."""
        return self.size[::-1] if exif == "apply" and self.orientation in SIDEWAYS else self.size


Look = Callable[[list[str], ThreadPoolExecutor], "list[Header | Refused]"]


def probe_all(paths: list[str], pool: ThreadPoolExecutor) -> list[Header | Refused]:
    """What `probe` says of each."""
    return list(pool.map(probe, paths))


class Headers:
    """Headers of image files, those used last remembered. Any thread may ask. `look` opens many files at once."""

    def __init__(self, limit: int = REMEMBERED, look: Look = probe_all):
        self.limit, self._look = limit, look
        self._known: OrderedDict[str, Header | Refused] = OrderedDict()
        self._lock = Lock()

    def __getitem__(self, path: str) -> Header | Refused:
        with self._lock:
            if path in self._known:
                self._known.move_to_end(path)
                return self._known[path]
        return self._remember(path, probe(path))

    def look_at(self, paths: Iterable[str], pool: ThreadPoolExecutor) -> bool:
        """Open what is not known yet or was refused, each file once; whether all could be read.

        Threads hide a network disk's latency, and such a disk's failures pass: a refusal holds until the next look.
        """
        unknown = [path for path in dict.fromkeys(paths) if not isinstance(self._known.get(path), Header)]
        found = [self._remember(path, header) for path, header in zip(unknown, self._look(unknown, pool), strict=True)]
        return all(isinstance(header, Header) for header in found)

    def __getstate__(self) -> int:
        return self.limit

    def __setstate__(self, limit: int) -> None:
        self.__init__(limit)  # type: ignore[misc]

    def _remember(self, path: str, header: Header | Refused) -> Header | Refused:
        with self._lock:
            self._known[path] = header
            if len(self._known) > self.limit:
                self._known.popitem(last=False)
        return header


Known = Headers | Mapping[str, Header | Refused]  # of a record's images, by path


def probe(path: str) -> Header | Refused:
    """Read the header only. Refused is of kind missing, decode or aspect."""
    try:
        with _open(path) as image:
            header = Header(image.size, orientation(image))
    except FileNotFoundError:
        where = "data.image_root says where relative paths start"
        return Refused("missing", f"the image {path} does not exist ({where})")
    except UnidentifiedImageError:
        return Refused("decode", f"{path} is not an image of a known format")
    except UNREADABLE as error:
        return Refused("decode", f"cannot open the image {path}: {error}")
    width, height = header.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        size = f"{width}x{height} px; a side may be {MAX_ASPECT} times the other"
        return Refused("aspect", f"the image {path} is {size}")
    return header


def load_image(path: str, exif: str = "ignore") -> Image.Image:
    """Decode a file to RGB at its own size. Raises one of UNREADABLE."""
    with _open(path) as image:
        turn = TURNS.get(orientation(image)) if exif == "apply" else None
        picture = to_rgb(image)
    return picture if turn is None else picture.transpose(turn)


def load_images(record: Record, exif: str = "ignore") -> list[Image.Image]:
    """The images of a record, a file that stands in it twice decoded once. DecodeError names the line and the image."""
    decoded: dict[str, Image.Image] = {}
    for path in record.images:
        if path not in decoded:
            try:
                decoded[path] = load_image(path, exif)
            except UNREADABLE as error:
                raise DecodeError(record, path, str(error)) from error
    return [decoded[path] for path in record.images]


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: transparency on white, 16 bits to their upper 8."""
    if image.mode.startswith("I"):  # I;16, I;16B, and the 32-bit I that holds 16-bit PNGs
        values = np.asarray(image).astype(np.int64)
        deep = image.mode != "I" or values.max(initial=0) > 255
        return Image.fromarray((values >> 8 if deep else values).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none. Reads no pixels."""
    if image.format == "TIFF":  # Pillow turns it when it opens it
        return 1
    if image.format == "PNG" and "exif" not in image.info:  # Pillow would decode all of it to look behind the pixels
        return 1
    value = image.getexif().get(ORIENTATION, 1)
    return value if value in TURNS else 1


def _open(path: str) -> Image.Image:
    """Image.open, refusing at once what Pillow only warns of: an image so large that it may be an attack."""
    image = Image.open(path)
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        image.close()
        raise Image.DecompressionBombError(
            f"{image.width}x{image.height} px, more than Pillow's MAX_IMAGE_PIXELS ({Image.MAX_IMAGE_PIXELS})"
        )
    return image
