"""Boxes on images. A `Mark` says what is drawn: `draw_boxes` paints it, the report's page makes SVG of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from univg_fast.data.images import UNREADABLE, load_image

TRUTH_COLOUR = "#12963f"  # green, drawn solid
PREDICTION_COLOUR = "#d81f2a"  # red, drawn dashed: told apart without colour too
GAP, CAPTION = 8, 20  # px between images, px of text above them


@dataclass(frozen=True)
class Mark:
    """A box on one image of a prompt: `box` is xyxy in 0-1000 of that image, `image` its 0-based index."""

    image: int
    box: Sequence[float]
    colour: str = PREDICTION_COLOUR
    dashed: bool = True
    opacity: float = 1.0
    label: str = ""


def truth(image: int, box: Sequence[float], label: str = "ground truth") -> Mark:
    """The mark of a ground truth."""
    return Mark(image, box, TRUTH_COLOUR, dashed=False, label=label)


def to_pixels(box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A 0-1000 box in pixels of an image of `size` (width, height); corners sorted, clipped to the image."""
    width, height = size
    xs = sorted(min(max(x / 1000 * width, 0.0), width) for x in (box[0], box[2]))
    ys = sorted(min(max(y / 1000 * height, 0.0), height) for y in (box[1], box[3]))
    return xs[0], ys[0], xs[1], ys[1]


def draw_boxes(images: Sequence[Image.Image], marks: Sequence[Mark], *, height: int = 240) -> Image.Image:
    """All images side by side at one height (px), named "image 1" to "image n", each with its marks; RGB.

    Small images are enlarged. ValueError for no image and for a mark on an image that is not there.
    """
    if not images:
        raise ValueError("draw_boxes: got no images")
    for mark in marks:
        if not 0 <= mark.image < len(images):
            raise ValueError(f"draw_boxes: mark on image {mark.image}, but there are {len(images)} (0-based)")
    tiles = [_tile(image, [m for m in marks if m.image == i], height) for i, image in enumerate(images)]
    width = sum(tile.width for tile in tiles) + GAP * (len(tiles) + 1)
    sheet = Image.new("RGB", (width, height + CAPTION + GAP), "white")
    draw, font, x = ImageDraw.Draw(sheet), ImageFont.load_default(12), GAP
    for i, tile in enumerate(tiles, 1):
        draw.text((x, 3), f"image {i}", fill="#1c2430", font=font)
        sheet.paste(tile, (x, CAPTION))
        x += tile.width + GAP
    return sheet


def _tile(image: Image.Image, marks: Sequence[Mark], height: int) -> Image.Image:
    size = (max(1, round(image.width * height / image.height)), height)
    tile = image.convert("RGBA").resize(size, Image.Resampling.LANCZOS)
    font = ImageFont.load_default(12)
    for mark in marks:
        layer = Image.new("RGBA", size)
        draw = ImageDraw.Draw(layer)
        edge = (size[0] - 3, size[1] - 3) * 2  # so that a line along the image's edge stays visible
        box = tuple(min(max(v, 2.0), e) for v, e in zip(to_pixels(mark.box, size), edge, strict=True))
        for colour, line in (("#ffffffc0", 5), (mark.colour, 3)):  # the white halo shows on any picture
            for segment in _outline(box, 9 if mark.dashed and colour == mark.colour else 0):
                draw.line(segment, fill=colour, width=line)
        if mark.label:
            at = (min(box[0] + 3, size[0] - 4), max(box[1] - 15, 1))
            draw.text(at, mark.label, fill=mark.colour, font=font, stroke_width=2, stroke_fill="white")
        layer.putalpha(layer.getchannel("A").point([round(a * mark.opacity) for a in range(256)]))
        tile = Image.alpha_composite(tile, layer)
    return tile.convert("RGB")


def _outline(box: Sequence[float], dash: int) -> Iterator[tuple[float, float, float, float]]:
    """The four sides of a box; with `dash` > 0 in dashes of that many px, with gaps of half that."""
    x1, y1, x2, y2 = box
    for ax, ay, bx, by in ((x1, y1, x2, y1), (x2, y1, x2, y2), (x2, y2, x1, y2), (x1, y2, x1, y1)):
        length = max(abs(bx - ax), abs(by - ay))
        step, at = (dash * 1.5, 0.0) if dash else (length + 1, 0.0)
        while at < length:
            start, end = at / length, min(at + (dash or length), length) / length
            yield ax + (bx - ax) * start, ay + (by - ay) * start, ax + (bx - ax) * end, ay + (by - ay) * end
            at += step


@dataclass(frozen=True)
class Picture:
    """An image as the page embeds it, once: a small JPEG in a data URI; `uri` is None if unreadable."""

    id: str
    name: str
    width: int  # px as embedded
    height: int
    uri: str | None


class Album:
    """The pictures of a page: each file embedded once, all together about `budget` bytes of data URI.

    They are what the model sees, whose `exif` says whether rotations in files are applied.
    """

    def __init__(self, root: Path, budget: int = 3_000_000, max_side: int = 320, exif: str = "ignore") -> None:
        self.root, self.budget, self.max_side, self.exif = root, budget, max_side, exif
        self.pictures: dict[str, Picture] = {}
        self.bytes = 0

    @property
    def full(self) -> bool:
        return self.bytes >= self.budget

    def add(self, path: str) -> Picture:
        """The picture of a file; a relative path starts at the run folder, or else at the working folder."""
        if path not in self.pictures:
            self.pictures[path] = picture = self._embed(path)
            self.bytes += len(picture.uri or "")
        return self.pictures[path]

    def _embed(self, path: str) -> Picture:
        here = self.root / path
        name, key = Path(path).name, f"p{len(self.pictures)}"
        try:
            small = load_image(str(here) if here.exists() else path, self.exif)
        except UNREADABLE:
            return Picture(key, name, 4, 3, None)
        small.thumbnail((self.max_side, self.max_side), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        small.save(out, "JPEG", quality=82, optimize=True)
        uri = "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
        return Picture(key, name, *small.size, uri)
