"""Boxes painted on images: the right place at every scale, the right image, readable tiny images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from univg_fast.report.overlays import CAPTION, GAP, Mark, draw_boxes, to_pixels, truth


def coloured(sheet: Image.Image, rgb: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Bounding box in px of the pixels near a colour."""
    near = np.abs(np.asarray(sheet, dtype=int) - np.array(rgb)).sum(-1) < 40
    ys, xs = np.nonzero(near)
    return int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())


def test_to_pixels_scales_sorts_and_clips():
    assert to_pixels((250, 500, 750, 1000), (400, 200)) == (100, 100, 300, 200)
    assert to_pixels((750, 1200, 250, -5), (400, 200)) == (100, 0, 300, 200)


@pytest.mark.parametrize("size", [(112, 112), (640, 320)])
def test_a_box_lands_on_its_image_at_its_place(size: tuple[int, int]):
    images = [Image.new("RGB", (112, 112), "grey"), Image.new("RGB", size, "grey")]
    sheet = draw_boxes(images, [truth(1, (250, 250, 750, 750), label="")], height=240)
    width = round(size[0] * 240 / size[1])
    left = GAP + 240 + GAP  # the second image begins after the first, both 240 px high
    assert sheet.size == (left + width + GAP, 240 + CAPTION + GAP)
    wanted = (left + width / 4, CAPTION + 60, left + 3 * width / 4, CAPTION + 180)
    assert np.abs(np.array(coloured(sheet, (0x12, 0x96, 0x3F))) - wanted).max() <= 2


def test_predictions_are_dashed_and_paler_with_less_opacity():
    image = [Image.new("RGB", (200, 200), "white")]

    def ink(**how) -> float:
        return float((255 - np.asarray(draw_boxes(image, [Mark(0, (100, 100, 900, 900), **how)]), float)).sum())

    assert ink() < 0.9 * ink(dashed=False)
    assert ink(opacity=0.3) < 0.6 * ink()


def test_no_image_and_a_mark_beside_the_images_are_errors():
    with pytest.raises(ValueError, match="no images"):
        draw_boxes([], [])
    with pytest.raises(ValueError, match="image 1, but there are 1"):
        draw_boxes([Image.new("RGB", (9, 9))], [Mark(1, (0, 0, 9, 9))])


def test_a_box_along_the_edge_of_its_image_shows_all_four_sides():
    sheet = draw_boxes([Image.new("RGB", (100, 100), "grey")], [truth(0, (0, 0, 1000, 1000), label="")], height=200)
    x1, y1, x2, y2 = coloured(sheet, (0x12, 0x96, 0x3F))
    assert GAP <= x1 <= GAP + 2 and CAPTION <= y1 <= CAPTION + 2
    assert GAP + 197 <= x2 < GAP + 200 and CAPTION + 197 <= y2 < CAPTION + 200
