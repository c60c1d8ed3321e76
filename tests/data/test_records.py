"""Every way in which a data file can be broken is reported with the file and the line, from real files."""

import json

import pytest
from PIL import Image

from univg_fast.data.errors import named
from univg_fast.data.images import ORIENTATION
from univg_fast.data.prompts import COT_SUFFIX, DIRECT_PREFIX
from univg_fast.data.records import read_records


def only_bad(path, kind, line):
    """The one bad record of a file, checked for its kind and place."""
    _, bad = read_records(path)
    assert [entry.kind for entry in bad] == [kind]
    assert bad[0].source == f"{path}:{line}"
    assert bad[0].message.startswith(f"{named(f'{path}:{line}', bad[0].uid)}: ")
    return bad[0].message


def test_stage1(folder):
    question = "<image>\n<image>\nWhere is it?" + COT_SUFFIX
    (record,), bad = read_records(folder.jsonl(folder.stage1(question, type="diff", target_image=0, split="x")))
    assert not bad
    assert record.question == "Where is it?" and record.box == (0, 0, 500, 250) and record.cot
    assert record.response == "<think>It is in image 1.</think><answer>(0,0),(500,250)</answer>"
    assert record.images == (str(folder.path / "a.png"), str(folder.path / "b.png"))
    assert (record.uid, record.task, record.target_image, record.extra) == ("one", "diff", 0, {"split": "x"})


def test_stage1_with_messages_and_a_system_turn(folder):
    row = folder.stage1()
    turns = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": row["conversations"][0]["value"]},
        {"role": "assistant", "content": row["conversations"][1]["value"]},
    ]
    del row["conversations"]
    (record,), bad = read_records(folder.jsonl(row | {"messages": turns}))
    assert not bad and record.question == "Where is it?" and record.box == (0, 0, 500, 250)


def test_stage2(folder):
    (record,), bad = read_records(folder.jsonl(folder.stage2()))
    assert not bad and record.box == (0, 0, 500, 250) and record.response is None and record.cot
    assert record.uid == "data:1" and record.target_image is None


def test_a_direct_answer_is_recognised(folder):
    told = folder.stage2(question=DIRECT_PREFIX + "<image><image>Where is it?")
    shown = folder.stage1(response="(0,0),(500,250)")
    said = folder.stage2(cot=False)
    records, bad = read_records(folder.jsonl(told, shown, said))
    assert not bad
    assert [(record.cot, record.question, record.box) for record in records] == [
        (False, "Where is it?", (0, 0, 500, 250))
    ] * 3


def test_a_list_and_lines_give_the_same_records(folder):
    rows = [folder.stage1(id=str(i)) for i in range(4)]
    listed = folder.write("list.json", json.dumps(rows, indent=2))
    lines = folder.jsonl(*rows)
    (from_list, _), (from_lines, _) = read_records(listed), read_records(lines)
    assert [record.uid for record in from_list] == [record.uid for record in from_lines] == ["0", "1", "2", "3"]
    height = len(json.dumps(rows[0], indent=2).split("\n"))
    assert [record.source for record in from_list] == [f"{listed}:{2 + i * height}" for i in range(4)]


def test_image_root(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "data.jsonl"
    elsewhere.write_text(json.dumps(folder.stage2()))
    assert only_bad(elsewhere, "missing", 1).endswith("(data.image_root says where relative paths start)")
    records, bad = read_records(elsewhere, folder.path)
    assert len(records) == 1 and not bad


def test_a_line_cut_in_half(folder):
    whole = json.dumps(folder.stage2())
    path = folder.jsonl(whole, whole[: len(whole) // 2], whole)
    assert "cut or malformed" in only_bad(path, "json", 2)
    assert len(read_records(path)[0]) == 2


@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_cut_in_the_middle(folder, indent):
    rows = [folder.stage1(id=str(i)) for i in range(3)]
    text = "[\n" + ",\n".join(json.dumps(row, indent=indent) for row in rows) + "\n]\n"
    start_of_last = text.rindex('{"id"' if indent is None else '{\n "id"')
    path = folder.write("list.json", text[: start_of_last + 40])
    line = 1 + text.count("\n", 0, start_of_last)
    assert "nothing of the 40 characters from here on is read" in only_bad(path, "json", line)
    assert [record.uid for record in read_records(path)[0]] == ["0", "1"]


def test_a_list_without_its_end(folder):
    path = folder.write("list.json", "[\n" + json.dumps(folder.stage2()) + ",\n")
    only_bad(path, "json", 3)
    assert len(read_records(path)[0]) == 1


def test_bytes_that_are_not_utf8(folder):
    good = json.dumps(folder.stage2()).encode()
    for name, content in (
        ("lines.jsonl", good + b"\n" + good.replace(b"Where", b"Wh\xe8re") + b"\n" + good),
        ("list.json", b"[" + good + b",\n" + good.replace(b"Where", b"Wh\xe8re") + b",\n" + good + b"]"),
    ):
        path = folder.write(name, content)
        assert "not UTF-8" in only_bad(path, "json", 2)
        assert len(read_records(path)[0]) == 2


def test_json_that_is_too_deep_or_too_long(folder):
    only_bad(folder.jsonl("[" * 5 + json.dumps(folder.stage2())), "json", 1)
    path = folder.jsonl(folder.stage2(), '{"question": ' + "[" * 200_000, '{"answer": ' + "1" * 5000 + "}")
    records, bad = read_records(path)
    assert len(records) == 1 and [(entry.kind, entry.source) for entry in bad] == [
        ("json", f"{path}:2"),
        ("json", f"{path}:3"),
    ]


@pytest.mark.parametrize("row", ["17", '"text"', "null", '{"images": ["a.png"]}', "{}"])
def test_not_a_record(folder, row):
    only_bad(folder.jsonl(row), "schema", 1)


@pytest.mark.parametrize("key", ["answer", "images"])
def test_a_missing_key_in_stage_2(folder, key):
    row = folder.stage2()
    del row[key]
    assert key in only_bad(folder.jsonl(folder.stage2(), row), "schema", 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"images": []},
        {"images": [3, 4]},
        {"images": "a.png"},  # one image, two marks
        {"conversations": "text"},
        {"conversations": [{"from": "human", "value": "<image><image>?"}]},
        {"conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "<image><image>?"}]},
        {"conversations": [{"from": "human", "value": 5}, {"from": "gpt", "value": "x"}]},
        {"target_image": 2},
        {"target_image": True},
        {"cot": "no"},
    ],
)
def test_a_wrong_schema_in_stage_1(folder, changes):
    kind = "count" if changes.get("images") == "a.png" else "schema"
    only_bad(folder.jsonl(folder.stage1(), folder.stage1(**changes)), kind, 2)


@pytest.mark.parametrize("marks", [0, 1, 3])
def test_a_wrong_number_of_image_marks(folder, marks):
    question = "<image>" * marks + "Where is it?"
    path = folder.jsonl(folder.stage2(), folder.stage2(question=question))
    assert f"expected 2 <image> marks, one for each image, got {marks}" in only_bad(path, "count", 2)
    only_bad(folder.jsonl(folder.stage1(question)), "count", 1)


def test_an_empty_question(folder):
    only_bad(folder.jsonl(folder.stage2(question="<image><image>\n")), "schema", 1)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([500, 250, 500, 400], "without area"),
        ([500, 250, 400, 400], "inverted"),
        ([0, 0, 1001, 10], "integers from 0 to 1000"),
        ([-1, 0, 10, 10], "integers from 0 to 1000"),
        ([0.1, 0.2, 0.5, 0.6], "integers from 0 to 1000"),
        ([0, 0, float("nan"), 10], "integers from 0 to 1000"),
        ([0, 0, 10], "[x1, y1, x2, y2]"),
        ([0, 0, "10", 10], "[x1, y1, x2, y2]"),
        ([True, False, 10, 10], "[x1, y1, x2, y2]"),
        ("0,0,10,10", "[x1, y1, x2, y2]"),
        (None, "[x1, y1, x2, y2]"),
    ],
)
def test_a_bad_box(folder, box, expected):
    path = folder.jsonl(folder.stage2(), folder.stage2(answer=box))
    assert expected in only_bad(path, "box", 2)


@pytest.mark.parametrize(
    "response",
    [
        "<think>Somewhere.</think>",
        "<think>There.</think><answer>in image 1</answer>",
        "<think>There.</think><answer>(500,250),(0,0)</answer>",
        "<think>There.</think><answer>(0,0),(5000,250)</answer>",
    ],
)
def test_a_target_without_a_usable_box(folder, response):
    only_bad(folder.jsonl(folder.stage1(response=response)), "box", 1)


@pytest.mark.parametrize(
    "response",
    [
        "<think>There.</think><answer>(0,0),(500,250)",
        "<think>There.</think>(0,0),(500,250)</answer>",
        "<think>There. <answer>(0,0),(500,250)</answer>",
        "There.</think><answer>(0,0),(500,250)</answer>",
        "<answer>(0,0),(500,250)</answer><answer>(0,0),(500,250)</answer>",
        "<think>A.</think><think><answer>(0,0),(500,250)</answer>",
    ],
)
def test_tags_that_do_not_pair(folder, response):
    message = only_bad(folder.jsonl(folder.stage1(), folder.stage1(response=response)), "schema", 2)
    assert "do not pair" in message and response[-40:] in message


@pytest.mark.parametrize(
    ("images", "target", "response", "told"),
    [
        (2, {"image": 1}, "<think>A.</think><answer>Image-1: (0,0),(500,250)</answer>", "Image-1: (0,0),(500,250)"),
        (2, {"image": 1}, '[{"bbox_2d": [0, 0, 500, 250], "image": 1}]', '[{"bbox_2d": [0, 0, 500, 250], "image": 1}]'),
        (2, {"image": 0}, "It's in the second image. (0,0),(500,250)", "second image"),
        (2, {"image": 0}, "Image-3: (0,0),(500,250)", "Image-3"),
        (1, {}, "Image-2: (0,0),(500,250)", "Image-2"),
        (2, {}, "Image-0: (0,0),(500,250)", "Image-0"),
        (1, {}, "(0,0),(500,260)", "(0,0),(500,260)"),
        (1, {}, "(0,0),(500,250)\n(0,0),(500,250)", "(0,0),(500,250)\n(0,0),(500,250)"),
    ],
)
def test_a_response_that_contradicts_its_target_is_bad(folder, images, target, response, told):
    row = {"images": ["a.png", "b.png"][:images], "question": "Where?", "response": response}
    message = only_bad(folder.jsonl(row | {"targets": [{"box": [0, 0, 500, 250]} | target]}), "schema", 1)
    named = f"Image-{target['image'] + 1}: " if target else ""
    assert told in message and message.endswith(f"and the target is {named}(0,0),(500,250)")


def test_what_was_rounded_is_no_contradiction(folder):
    row = {"images": ["a.png"], "question": "Where?", "targets": [{"box": [0, 0, 500, 250]}]}
    (record,), bad = read_records(folder.jsonl(row | {"response": "(0,0.4),(499.5,250)"}))
    assert not bad and record.response == "(0,0),(500,250)"


def test_options_are_those_of_an_entry_and_of_the_scan(folder):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new("RGB", (400, 200)).save(folder.path / "turned.jpg", exif=exif)
    row = {"images": ["turned.jpg"], "question": "Where?", "targets": [{"box": [0, 0, 100, 400]}]}
    (record,), bad = read_records(folder.jsonl(row), coordinates="pixel", exif="apply")
    assert not bad and record.targets[0].box == (0, 0, 500, 1000)  # of 200 x 400
    assert read_records(folder.jsonl(row), coordinates="pixel")[1]
    with pytest.raises(ValueError, match="coordinates: expected one of"):
        read_records(folder.jsonl(row), coordinates="pixels")


def test_no_such_file(tmp_path):
    with pytest.raises(ValueError, match="none.json: no such file"):
        read_records(tmp_path / "none.json")
