"""Corrupted records and images: no crash, no hang, linear time. `UNIVG_FUZZ=100000` sets how many of each."""

from __future__ import annotations

import json
import os
import random
import time
from copy import deepcopy
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from speed import is_linear
from univg_kernels.scan_boxes.search import ANY

from univg_fast.data.boxtext import boxes_in, in_tokens, matches, placed, rewrite
from univg_fast.data.errors import Refused, named
from univg_fast.data.formats import read_row, recognise, write_row
from univg_fast.data.images import UNREADABLE, load_image, probe
from univg_fast.data.scan import scan, write_report
from univg_fast.structs import BadRecord

from .examples import ROWS

NUMBER = int(os.environ.get("UNIVG_FUZZ", "4000"))
pytestmark = pytest.mark.timeout(max(900, NUMBER // 50))
VALUES = [
    None, True, False, 0, -1, 7, 10**30, -(10**14), 1e308, float("nan"), float("inf"), 0.5, "", "x", "\0", "🐕",
    "\ud7ff", "<image>", "<image>" * 50, "<bbox>", "<ref-object>", "<|image_pad|>", "(0,0),(500,250)", "<answer>",
    "[" * 200, [], {}, [[]], [None], [1, 2, 3, 4], [0, 0, 500, 250], [[0, 0, 30, 10]], {"bytes": "x"},
    {"ground_truth": 3}, ["a.png"], ["a.png", 3], [{"from": "human", "value": "<image>?"}],
    [{"role": "user", "content": "<image>?"}] * 2, {"ref": ["x"], "bbox": [[0, 0, 1, 1]], "bbox_type": "norm1"},
    {"bbox": [[0, 0, 1]]}, {"bbox_type": []}, [[[[[[[[[[1]]]]]]]]]], "1" * 5000, "9" * 300 + "," * 300,
]  # fmt: skip
KEYS = sorted({key for rows in ROWS.values() for row in rows for key in row})


def damaged(row, rng):
    """A row with some values anywhere in it replaced, removed, added or moved to other keys."""
    row = json.loads(json.dumps(row))
    for _ in range(rng.randint(1, 3)):
        at, inner = row, rng.random() < 0.5
        while inner and at and isinstance(at, (dict, list)):
            place = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if not isinstance(at[place], (dict, list)) or not at[place] or rng.random() < 0.3:
                break
            at = at[place]
        if isinstance(at, list):
            at[rng.randrange(len(at))] = deepcopy(rng.choice(VALUES))
        elif rng.random() < 0.2:
            at.pop(rng.choice(list(at)), None) if at else None
        else:
            at[rng.choice(KEYS if rng.random() < 0.4 or not at else list(at))] = deepcopy(rng.choice(VALUES))
    return row


def broken(line, rng):
    """Bytes of a line cut, doubled, flipped or thrown in."""
    line = bytearray(line)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(line) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            del line[at : at + rng.randint(1, 40)]
        elif kind == 1:
            line[at:at] = line[at : at + rng.randint(1, 40)]
        elif kind == 2 and at < len(line):
            line[at] ^= 1 << rng.randrange(8)
        else:
            line[at:at] = rng.choice([b'"', b"{", b"]", b"\\ud800", b"\xff", b"\\u0000", b",", b"1e999", b"[" * 30])
    return bytes(line).replace(b"\n", b" ")


def test_corrupted_records(folder):
    """Each becomes a record or a bad record with file and line; a record is parsed again when it is used."""
    rng = random.Random(1)
    rows = [row for rows in ROWS.values() for row in rows]
    lines = []
    for i in range(NUMBER):
        line = json.dumps(damaged(rng.choice(rows), rng)).encode()
        lines.append(broken(line, rng) if i % 3 == 0 else line)
    path = folder.write("fuzz.jsonl", b"\n".join(lines))
    started = time.process_time()
    records, report = scan([path])
    took = time.process_time() - started
    assert report.good == len(records) > NUMBER / 50 and len(report.bad) > NUMBER / 4
    for bad in report.bad:
        assert isinstance(bad, BadRecord) and bad.message.startswith(f"{named(bad.source, bad.uid)}: ")
        assert len(bad.message) < 5000
    assert {bad.kind for bad in report.bad} <= {"json", "schema", "missing", "decode", "aspect", "count", "box"}
    for record in records:
        assert record.question and record.images
        for target in record.targets:
            x1, y1, x2, y2 = target.box
            assert 0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000
            assert target.image is None or 0 <= target.image < len(record.images)
    write_report(folder.path / "report.json", {"sft": report})
    report.details()
    assert took / NUMBER < 2e-3, f"{took / NUMBER * 1e6:.0f} microseconds a record"


def test_what_is_read_is_written_back_without_loss():
    """Whatever stands in the row besides: through the project's own format to an equal row."""
    rng, same = random.Random(3), 0
    rows = [row for name, rows in ROWS.items() for row in rows if name != "univg_fast"]
    for _ in range(NUMBER):
        row = json.loads(json.dumps(damaged(rng.choice(rows), rng)))
        name = recognise(row)
        try:
            raws = read_row(row, Path())
        except Refused:
            continue
        if name == "univg_fast":  # by the accident of its keys; what it does not know moves to extra
            continue
        own = [json.loads(json.dumps(write_row([raw], "univg_fast"))) for raw in raws]
        back = write_row([raw for line in own for raw in read_row(line, Path())], name)
        assert json.dumps(back, sort_keys=True) == json.dumps(row, sort_keys=True)
        same += 1
    assert same > NUMBER / 10


def pictures():
    """Small files of every kind."""
    image = Image.effect_noise((31, 17), 90).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = [(form, {}) for form in ("PNG", "GIF", "BMP", "TIFF", "PPM", "TGA", "ICO", "JPEG2000")]
    turned = [(form, {"exif": exif}) for form in ("PNG", "JPEG", "WEBP")]
    for form, options in (*plain, *turned, ("TIFF", {"compression": "tiff_lzw"})):
        out = BytesIO()
        image.save(out, form, **options)
        yield out.getvalue()
    out = BytesIO()
    image.quantize(16).save(out, "PNG", transparency=3)
    yield out.getvalue()


@pytest.mark.filterwarnings("ignore")
def test_corrupted_images(tmp_path, monkeypatch, caplog):
    """The header and the pixels are read, or refused by one of the errors that the loader expects."""
    caplog.set_level("CRITICAL", "PIL")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1 << 20)  # a flipped bit of a size must not cost gigabytes here
    rng = random.Random(2)
    files = list(pictures())
    path = tmp_path / "x"
    good = 0
    slowest = 0.0
    for _ in range(NUMBER):
        content = bytearray(rng.choice(files))
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(min(len(content), rng.choice([64, 1 << 20])))
            content[at] = rng.randrange(256)
        if rng.random() < 0.2:
            del content[rng.randrange(len(content)) :]
        path.write_bytes(content)
        started = time.process_time()
        probe(str(path))
        for exif in ("ignore", "apply"):
            try:
                image = load_image(str(path), exif)
            except UNREADABLE:
                continue
            assert image.mode == "RGB" and image.width * image.height <= 1 << 20
            good += 1
        slowest = max(slowest, time.process_time() - started)
    assert good > NUMBER / 10 and slowest < 2


@pytest.mark.parametrize(
    "piece",
    ["(", "(1,", "(1,2),(3,", "[1, 2, 3", "<|box_start|>", "<|object_ref_start|>x", "Image-", '{"image": ', "{", "9",
     " ", '{"bbox_2d": [1, 2, 3, 4], "label": "', "(1,2),(3,4)", "first image "],
)  # fmt: skip
def test_boxes_in_hostile_text_take_linear_time(piece):
    """Four times the text takes about four times the time: no piece makes the searches quadratic."""

    def search(number):
        text = piece * number
        boxes_in(text, 5)
        rewrite(text, in_tokens(text, placed(text, 5)), lambda box: box.numbers)

    assert is_linear(search, 2_000, 16_000)


PIECES = (
    *("image", "Image-2", "the second picture", "3rd image 2", "photo #4", "frame_12", "image 123", "1234", "rd image"),
    *("(1,2),(3,4)", "(1,2,3,4)", "[1, 2, 3.5, -4]", "<box>1 2 3 4</box>", "{", "}", '"image": 3', "first", "\u0130"),
    *('"image_id": "Image 2"', '"label": "the first image"', '"label": "a (1,2),(3,4) b"', "</think>", "<answer>"),
    *(
        "<|object_ref_start|>image 1<|object_ref_end|>",
        " ",
        "-",
        "_",
        "x",
        "\u017f",
        "\u00a0",
        '"',
        "1",
        "\n",
        "(",
        "<",
    ),
)


def test_boxes_and_names_are_found_where_the_one_pattern_finds_them():
    """The search takes short cuts; what it finds must be what the specification's pattern does, overlaps and all."""
    rng, mentions = random.Random(7), 0
    for _ in range(NUMBER):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randrange(30)))
        expected = [(match.span(), match.lastgroup, match.groups()) for match in ANY.finditer(text)]
        got = [(match.span(), match.lastgroup, match.groups()) for match in matches(text)]
        assert [(span, kind) for span, kind, _ in got] == [(span, kind) for span, kind, _ in expected], text
        told = [{g for g in groups if g is not None} for _, _, groups in expected]
        assert [{g for g in groups if g is not None} for _, _, groups in got] == told
        mentions += sum(kind in ("word", "nth", "number") for _, kind, _ in got)
    assert mentions > NUMBER
