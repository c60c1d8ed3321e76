"""What another format has a place for arrives to the letter; what it has none for is counted or named."""

from __future__ import annotations

import json

import pytest

from univg_fast.data.convert import convert
from univg_fast.data.fitting import ANEW, SYSTEM, UNUSED
from univg_fast.data.scan import scan

from .examples import HARD, ROWS, talk, turns

SENTENCES = (
    "From top to bottom they are [12, 7, 30, 41], so the third shelf has most items.",
    "The cat (10,20),(100,200) sits left of the dog (300,20),(400,200), which barks.",
    "[12, 7, 30, 41] is the order.",
)


def written(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("to", ["univg_fast", "univg_r1_stage1", "sharegpt", "vlm_r1", "ms_swift", "alpaca"])
@pytest.mark.parametrize("said", SENTENCES)
def test_a_sentence_with_numbers_in_it_is_kept_to_the_letter(disk, to, said):
    """What training makes of it is another matter: a converted file holds what the file held, or says that not."""
    out = disk.path / "out.jsonl"
    done = convert(disk.jsonl({"images": ["a.png"], "conversations": turns("<image>What?", said)}), out, to)
    assert done.written + len(done.bad) == 1 and not done.without[ANEW]
    if not done.written:  # in vlm_r1 a list is pixels
        assert to == "vlm_r1" and "[" in said and "does not keep the boxes" in done.bad[0].message
        return
    assert said in [json.loads(text) for text in _texts(written(out))]
    back = disk.path / "back.jsonl"
    assert convert(out, back, "sharegpt").written == 1
    assert [turn["value"] for turn in written(back)[0]["conversations"]] == ["<image>What?", said]


def _texts(value):
    """All texts of a value, as JSON."""
    if isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield json.dumps(value)


def test_boxes_that_are_written_anew_are_counted(disk):
    """ms-swift tells the images of boxes beside the text, sharegpt in it; words are never dropped for that."""
    done = convert(disk.jsonl(*HARD["swift targets"]), disk.path / "out.jsonl", "sharegpt")
    assert done.written == 1 and done.without == {ANEW: 1} and f"1 {ANEW}" in done.summary()
    (row,) = HARD["swift targets"]
    row = row | {"messages": talk("<image><image>Both <ref-object>?", "It chases <bbox>, and this is <bbox>.")}
    done = convert(disk.jsonl(row), disk.path / "out.jsonl", "sharegpt")
    assert [bad.message.split(": ", 1)[1] for bad in done.bad] == [
        "the format sharegpt does not keep the image of a box"
    ]


@pytest.mark.parametrize("name", ["lisa", "llmseg", "reasonvos", "ms_swift"])
def test_boxes_that_are_no_target_s_are_counted(disk, name):
    row = ROWS[name][0]
    if name == "ms_swift":
        boxes = row["objects"]["bbox"], row["objects"]["image_id"]
        row = row | {"objects": row["objects"] | {"bbox": [*boxes[0], [1, 2, 3, 4]], "image_id": [*boxes[1], 0]}}
        assert not convert(disk.jsonl(ROWS[name][0]), disk.path / "out.jsonl", "univg_r1_stage2").without[UNUSED]
    for to, number in (("univg_r1_stage2", 1), ("univg_fast", 0), (name, 0)):
        done = convert(disk.jsonl(row), disk.path / "out.jsonl", to)
        assert done.written == 1 and done.without[UNUSED] == number


SYSTEM_TURN = {"role": "system", "content": "Be brief."}
SPOKEN = {
    "ms_swift": {"images": ["a.png"], "messages": [SYSTEM_TURN, *talk("<image>Where?", "<bbox>")],
                 "objects": {"ref": [], "bbox": [[0, 0, 30, 10]]}},
    "sharegpt": {"images": ["a.png"], "messages": [SYSTEM_TURN, *talk("<image>Where?", "(0,0),(500,250)")]},
    "verl": {"images": ["a.png"], "prompt": [SYSTEM_TURN, {"role": "user", "content": "<image>Where?"}],
             "reward_model": {"ground_truth": [0, 0, 500, 250]}},
}  # fmt: skip


@pytest.mark.parametrize("name", SPOKEN)
def test_system_turns_go_along_or_are_counted(disk, name):
    out = disk.path / "out.jsonl"
    for to, key, turn in (
        ("sharegpt", "conversations", {"from": "system", "value": "Be brief."}),
        ("vlm_r1", "conversations", {"from": "system", "value": "Be brief."}),
        ("ms_swift", "messages", SYSTEM_TURN),
        ("verl", "prompt", SYSTEM_TURN),
    ):
        done = convert(disk.jsonl(SPOKEN[name]), out, to)
        if name == "verl" and key == "conversations":
            assert not done.written  # which need a response
            continue
        (row,) = written(out)
        said = row[key] if key in row else row["messages"]  # sharegpt's own spelling, where it was one before
        assert said[0] in ((turn, SYSTEM_TURN) if name == "sharegpt" else (turn,))
        assert len(said) > 1 and not done.without[SYSTEM]
        convert(out, disk.path / "again.jsonl", "univg_fast")
        convert(disk.path / "again.jsonl", disk.path / "back.jsonl", "verl")
        assert written(disk.path / "back.jsonl")[0]["prompt"][0] in (turn, SYSTEM_TURN)
    done = convert(disk.jsonl(SPOKEN[name]), out, "univg_r1_stage2")
    assert done.without[SYSTEM] == 1 and f"1 {SYSTEM}" in done.summary()


def test_keys_of_a_turn_are_not_dropped_unsaid(disk):
    row = {"images": ["a.png"], "conversations": turns("<image>Where?", "(0,0),(500,250)")}
    row["conversations"][1]["loss"] = False
    assert convert(disk.jsonl(row), disk.path / "out.jsonl", "vlm_r1").written == 1
    assert written(disk.path / "out.jsonl")[0]["conversations"][1]["loss"] is False
    done = convert(disk.jsonl(row), disk.path / "out.jsonl", "ms_swift")
    assert done.bad[0].message.endswith("the format ms_swift does not keep the keys of a turn")


@pytest.mark.parametrize("to", ["easy_r1", "verl"])
@pytest.mark.parametrize("style", [None, "univg_r1", "bbox_2d", "box_tokens"])
@pytest.mark.parametrize("number", [1, 2])
def test_the_style_of_an_answer_is_told(disk, to, style, number):
    """Several boxes are JSON text there; the prompt asks for the style that it asked for before."""
    targets = [{"box": [0, 0, 500, 250], "label": "dog"}, {"box": [1, 2, 30, 40]}][:number]
    row = {"images": ["a.png"], "question": "Both?", "targets": targets}
    source, out = disk.jsonl(row | ({"answer_style": style} if style else {})), disk.path / "out.jsonl"
    assert convert(source, out, to).bad == []
    ((record,), _), ((before,), _) = scan([out]), scan([source])
    assert record.answer_style == before.answer_style == (style or "univg_r1")
    assert [t.box for t in record.targets] == [t.box for t in before.targets] and record.extra == {}
    rows = written(out)
    convert(out, disk.path / "own.jsonl", "univg_fast")
    convert(disk.path / "own.jsonl", out, to)
    assert written(out) == rows


def test_a_textual_answer_shows_its_style(disk):
    shown = {"[0, 0, 500, 250]": "univg_r1", "(0,0),(500,250)": "univg_r1",
             '[{"bbox_2d": [0, 0, 500, 250]}]': "bbox_2d",
             "<|box_start|>(0,0),(500,250)<|box_end|>": "box_tokens"}  # fmt: skip
    rows = [{"problem": "<image>Where?", "images": ["a.png"], "answer": answer} for answer in shown]
    records, report = scan([disk.jsonl(*rows)])
    assert [record.answer_style for record in records] == list(shown.values()) and not report.bad
