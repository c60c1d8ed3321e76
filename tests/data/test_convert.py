"""Conversion between formats: back without loss; to another format either the same record or a named refusal."""

from __future__ import annotations

import json
import os
import re

import pytest

from univg_fast.data.__main__ import main
from univg_fast.data.convert import convert
from univg_fast.data.fitting import RESPONSES
from univg_fast.data.formats import FORMATS
from univg_fast.data.scan import scan
from univg_fast.structs import Record

from .examples import HARD, ROWS

NO_RESPONSE = {"univg_r1_stage2", "mig_bench", "easy_r1", "verl"}
NAMES = [*FORMATS]
WITH_RESPONSE = ("response", "answer_style", "names_images")  # are a response's


def meaning(record: Record, without_response: bool = False) -> dict:
    """What a record says, but for its place; of one image no box needs to say so."""
    said = {k: v for k, v in record.__dict__.items() if k not in ("uid", "source", "extra")}
    images = [os.path.normpath(path) for path in record.images]
    holders = [0 if len(images) == 1 else target.image for target in record.targets]
    said |= {"images": images, "targets": [(t.box, i, t.label) for t, i in zip(record.targets, holders, strict=True)]}
    said["names_images"] &= len(record.targets) == 1 and record.answer_style != "bbox_2d"  # the others always do
    return {k: v for k, v in said.items() if not (without_response and k in WITH_RESPONSE)}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_there_and_back_without_loss(disk, name, suffix):
    rows = ROWS[name]
    source = disk.jsonl(*rows)
    own, back = disk.path / f"own.{suffix}", disk.path / f"back.{suffix}"
    assert convert(source, own, "univg_fast").bad == []
    assert convert(own, back, name).bad == []
    text = back.read_text()
    found = json.loads(text) if suffix == "json" else [json.loads(line) for line in text.splitlines()]
    if name == "univg_fast":  # what it does not know moves to extra
        rows = [{k: v for k, v in row.items() if k != "mine"} | {"extra": {"mine": row["mine"]}} for row in rows]
        found = [{k: v for k, v in row.items() if k != "coordinates"} for row in found]
    assert found == rows


@pytest.mark.parametrize("name", ROWS)
def test_our_own_format_gives_the_same_records(disk, name):
    before, _ = scan([disk.jsonl(*ROWS[name])])
    convert(disk.path / "data.jsonl", disk.path / "own.jsonl", "univg_fast")
    after, report = scan([disk.path / "own.jsonl"])
    assert not report.bad
    assert [meaning(r) | {"extra": r.extra} for r in after] == [meaning(r) | {"extra": r.extra} for r in before]


@pytest.mark.parametrize("to", NAMES)
@pytest.mark.parametrize("name", [*ROWS, *HARD])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["beside", "elsewhere"])
def test_every_row_arrives_whole_or_is_named(disk, name, to, elsewhere):
    """All rows that are written are read back as the records that they were, those that are not are counted."""
    source = disk.jsonl(*(ROWS | HARD)[name])
    before, report = scan([source])
    assert not report.bad
    (disk.path / "deep" / "er").mkdir(parents=True)
    out = (disk.path / "deep" / "er" if elsewhere else disk.path) / "out.jsonl"
    done = convert(source, out, to)
    left = {bad.source for bad in done.bad}
    assert all(re.fullmatch(rf"{re.escape(str(source))}:\d+(#\d)?", place) for place in left)
    kept = [r for r in before if r.source not in left and r.source.partition("#")[0] not in left]
    if not done.written:
        assert not kept and left
        return
    after, report = scan([out])
    assert not report.bad, report.bad
    dropped = to in NO_RESPONSE
    assert [meaning(r, dropped) for r in after] == [meaning(r, dropped) for r in kept]
    assert [r.uid for r in after if not r.uid.startswith("out:")] == [
        r.uid for r in kept if not r.uid.startswith("data:")
    ]
    assert done.without[RESPONSES] == (sum(r.response is not None for r in kept) if dropped else 0)


@pytest.mark.parametrize(
    ("name", "to", "refusals"),
    [
        ("unknown image", "ms_swift", ["ms_swift needs the image of each box, and the record does not tell it"]),
        ("several targets", "univg_r1_stage2", ["the format univg_r1_stage2 holds one box, and the record has 2"]),
        ("several targets", "easy_r1", []),
        ("several targets", "verl", []),
        ("several targets", "ms_swift", ["the format ms_swift does not keep a label"]),
        ("several answers", "univg_r1_stage2", []),
        ("several answers", "ms_swift", []),
        (
            "swift turns",
            "sharegpt",
            [
                "the format sharegpt does not keep the image of a box, a label",
                "the format sharegpt needs a response, and the record has none",
            ],
        ),
        ("swift turns", "univg_r1_stage2", []),
        ("label", "univg_r1_stage2", []),
        ("keys of its own", "univg_r1_stage2", ["the format univg_r1_stage2 does not keep the key answer"]),
        ("pixels", "vlm_r1", []),
    ],
)
def test_what_a_format_holds(disk, name, to, refusals):
    source = disk.jsonl(*HARD[name])
    done = convert(source, disk.path / "out.jsonl", to)
    assert [bad.message.split(": ", 1)[1] for bad in done.bad] == refusals
    assert done.written or refusals
    assert all(refusal in done.summary() for refusal in refusals)


@pytest.mark.parametrize("to", ["univg_r1_stage2", "ms_swift", "easy_r1", "verl"])
@pytest.mark.parametrize("name", ["lisa", "revos", "mig_bench", "ms_swift", "easy_r1"])
def test_from_one_format_to_another(disk, name, to):
    """Boxes arrive as 0-1000 of their images, whatever they were before."""
    rows = [row for row in ROWS[name] if "diff" not in row.get("task", "")]
    source, out = disk.jsonl(*rows), disk.path / "out.jsonl"
    before, _ = scan([source])
    assert convert(source, out, to).bad == []
    after, report = scan([out])
    told = name if (name, to) == ("mig_bench", "univg_r1_stage2") else to  # its own keys come along, and are recognised
    assert [r.box for r in after] == [r.box for r in before] and set(*report.formats.values()) == {told}
    assert [r.question for r in after] == [r.question for r in before]


def test_responses_that_a_format_has_no_place_for_are_counted(disk, capsys):
    source = disk.jsonl(*ROWS["univg_r1_stage1"], *ROWS["univg_r1_stage2"])
    assert main(["convert", str(source), str(disk.path / "out.jsonl"), "--to", "univg_r1_stage2"]) == 0
    said = capsys.readouterr().out
    assert "4 rows of univg_r1_stage2" in said and "2 responses left out (the format has none)" in said


def test_what_is_left_out_is_told_in_the_closing_line(disk, capsys):
    source = disk.jsonl(*ROWS["univg_fast"], *ROWS["univg_r1_stage2"])
    assert main(["convert", str(source), str(disk.path / "out.jsonl"), "--to", "univg_r1_stage2"]) == 1
    out, err = capsys.readouterr()
    assert "1 entries left out (1: the format univg_r1_stage2 holds one box, and the record has 2)" in out
    assert f"left out {source}:1: " in err
    with pytest.raises(ValueError, match=r"--to: expected one of univg_fast, .*, got 'coco'"):
        convert(source, disk.path / "out.jsonl", "coco")


def test_an_edited_row_of_our_own_is_not_undone(disk):
    """The shape that restores a row says what it was; a box that was corrected since is what counts."""
    convert(disk.jsonl(ROWS["easy_r1"][0]), disk.path / "own.jsonl", "univg_fast")
    row = json.loads((disk.path / "own.jsonl").read_text())
    row["targets"][0]["box"] = [1, 2, 3, 4]
    (disk.path / "own.jsonl").write_text(json.dumps(row))
    assert convert(disk.path / "own.jsonl", disk.path / "back.jsonl", "easy_r1").bad == []
    assert json.loads((disk.path / "back.jsonl").read_text())["answer"] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"univg_fast", "sharegpt"}))
def test_a_row_that_only_claims_its_format_is_written_or_named(disk, name):
    source = disk.jsonl(ROWS["univg_fast"][0] | {"format": name})
    done = convert(source, disk.path / "out.jsonl", name)
    assert done.written + len(done.bad) == 1


def test_what_the_numbers_mean_is_told_by_the_entry(disk):
    source = disk.jsonl(disk.stage2(answer=[0, 0, 30, 10]))
    convert({"path": str(source), "coordinates": "pixel"}, disk.path / "out.jsonl", "univg_r1_stage2")
    assert json.loads((disk.path / "out.jsonl").read_text())["answer"] == [0, 0, 500, 250]


def test_a_conversation_without_its_end_is_not_joined_with_the_next(disk):
    convert(disk.jsonl(*ROWS["mgrounding"]), disk.path / "own.jsonl", "univg_fast")
    first = (disk.path / "own.jsonl").read_text().splitlines()[0]
    (disk.path / "cut.jsonl").write_text(f"{first}\n{json.dumps(ROWS['univg_fast'][0])}\n{first}\n")
    done = convert(disk.path / "cut.jsonl", disk.path / "back.jsonl", "univg_fast")
    assert done.written == 3 and not done.bad


def test_images_are_found_from_the_new_place(disk, tmp_path_factory):
    """Relative paths are rewritten, also through a link to the folder and where images lie below another root."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "link").symlink_to(disk.path, target_is_directory=True)
    source = elsewhere / "data.jsonl"
    source.write_text(json.dumps(disk.stage2(images=["./a.png", str(disk.path / "b.png")])))
    entry = {"path": str(source), "image_root": str(elsewhere / "link")}
    (disk.path / "sub").mkdir()
    for out in (disk.path / "sub" / "out.jsonl", elsewhere / "link" / "sub" / "again.jsonl"):
        assert convert(entry, out, "univg_r1_stage2").bad == []
        assert json.loads(out.read_text())["images"] == ["../a.png", str(disk.path / "b.png")]
        assert not scan([out])[1].bad
