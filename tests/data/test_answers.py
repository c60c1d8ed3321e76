"""The answers of stage-1 files, in whatever spelling: what is learned has the form that the prompt asks for."""

import json

import pytest

from univg_fast.data.convert import convert
from univg_fast.data.prompts import prompt_text
from univg_fast.data.scan import scan, write_report
from univg_fast.rewards import parse

from .examples import HARD, ROWS, records_of, turns

BOX = (0, 0, 500, 250)


def asked_and_taught(record):
    """The instruction of the prompt, and the answer in the strict form of the record's style."""
    prompt = prompt_text(record).split("<|im_start|>user")[1]
    return prompt, parse(record.response, record.answer_style, "strict", record.cot)


@pytest.mark.parametrize("value", [[0, 0, 30, 10], [[0, 0, 30, 10]], [0.0, 0, 30.0, 10]])
def test_an_answer_of_vlm_r1_may_be_a_list(disk, value):
    row = ROWS["vlm_r1"][0] | {"conversations": turns("<image>Where?", value)}
    (record,), _ = records_of(disk, row)
    assert record.box == BOX and record.response == '[{"bbox_2d": [0, 0, 500, 250]}]'
    convert(disk.path / "data.jsonl", disk.path / "own.jsonl", "univg_fast")
    convert(disk.path / "own.jsonl", disk.path / "back.jsonl", "vlm_r1")
    assert json.loads((disk.path / "back.jsonl").read_text()) == row


@pytest.mark.parametrize("value", [[], [1, 2, 3], ["a"], [[0, 0, 30, 10], 5], {"box": 1}, 7])
def test_other_answers_are_no_texts(disk, value):
    _, report = scan([disk.jsonl(ROWS["vlm_r1"][0] | {"conversations": turns("<image>Where?", value)})])
    assert [bad.kind for bad in report.bad] in (["box"], ["schema"])


@pytest.mark.parametrize("name", ["swift targets", "several targets with a response", "several and where"])
def test_of_several_boxes_the_target_is_what_the_prompt_asks_for(disk, name):
    """Lines that name their images, although the file has the boxes one behind the other."""
    rows = HARD | {
        "several and where": [
            {"images": ["a.png", "b.png"], "conversations": turns("<image><image>Both?", "It's in the second "
             "image, <|box_start|>(0,0),(500,250)<|box_end|>, and in Image-1: <|box_start|>(1,2),(3,4)<|box_end|>.")}
        ]
    }  # fmt: skip
    (record,), _ = records_of(disk, *rows[name])
    prompt, answer = asked_and_taught(record)
    assert "all bounding boxes, one on a line, as Image-1: " in prompt and not record.cot
    assert answer.strict and [(b.box, b.image) for b in answer.boxes] == [(t.box, t.image) for t in record.targets]
    assert len(record.response.splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "response", "style", "taught"),
    [
        ("vlm_r1", "[0, 0, 30, 10]", "bbox_2d", '[{"bbox_2d": [0, 0, 500, 250]}]'),
        ("vlm_r1", "<answer>[0, 0, 30, 10]</answer>", "bbox_2d", '<answer>[{"bbox_2d": [0, 0, 500, 250]}]</answer>'),
        ("sharegpt", "<answer>(0,0),(500,250)</answer>", "univg_r1", "<answer>(0,0),(500,250)</answer>"),
        ("sharegpt", "(0,0,500,250)", "univg_r1", "(0,0),(500,250)"),
        ("sharegpt", "<box>0 0 500 250</box>", "univg_r1", "(0,0),(500,250)"),
        ("sharegpt", "<think>Not [1, 2, 3, 4].</think><answer>(0, 0),(500, 250)</answer>", "univg_r1", None),
        ("sharegpt", "<think>Not (1,2),(3,4).</think><answer>[0, 0, 500, 250]</answer>", "bbox_2d",
         '<think>Not (1,2),(3,4).</think><answer>[{"bbox_2d": [0, 0, 500, 250]}]</answer>'),
    ],
)  # fmt: skip
def test_the_style_of_a_target_is_the_prompts(disk, name, response, style, taught):
    key = "image" if name == "vlm_r1" else "images"
    row = {key: ["a.png"], "conversations": turns("<image>Where?", response)}
    (record,), _ = records_of(disk, row)
    prompt, answer = asked_and_taught(record)
    assert (record.answer_style, record.response) == (style, response if taught is None else taught)
    assert answer.strict and [box.box for box in answer.boxes] == [BOX]
    assert ("<think>" in prompt) == ("<think>" in response) == record.cot


def test_boxes_of_a_files_texts_are_counted_in_their_own_images(disk):
    """In pixels of images of two sizes: the target's, and one of the thinking that leaves its image."""
    said = "<think>In Image-1, not at [0, 0, 66, 10].</think><answer>[0, 0, 50, 20]</answer>"
    row = {"image": ["a.png", "c.png"], "target_image": 1, "conversations": turns("<image><image>Where?", said)}
    (record,), _ = records_of(disk, row)
    assert record.box == BOX and "not at [0, 0, 1100, 250]" in record.response
    assert parse(record.response, "bbox_2d").boxes[0].box == BOX


SENTENCES = [
    "From top to bottom they are [12, 7, 30, 41], so the third shelf has most items.",
    "The cat (10,20),(100,200) sits left of the dog (300,20),(400,200), which barks.",
    "A cat <|box_start|>(10,20),(100,200)<|box_end|> and a <|box_start|>(300,20),(400,200)<|box_end|> dog.",
    "[3, 2, 1, 0] as order",
    "Brown.",
    "(1,2),(30,40), 12 of them",
    "<think>Three.</think><answer>They stand at (1,2),(30,40), I think.</answer>",
]


@pytest.mark.parametrize("style", [None, "univg_r1", "bbox_2d", "box_tokens"])
@pytest.mark.parametrize("name_images", [True, False])
def test_a_sentence_stays_as_it_is(disk, style, name_images):
    """Numbers in a sentence may be anything: whatever is rewarded, and whatever style is asked for."""
    rows = [{"images": ["a.png"], "conversations": turns("<image>What?", said)} for said in SENTENCES]
    rows += [
        {"images": ["a.png", "b.png"], "target_image": 1, "conversations": turns("<image><image>What?", said)}
        for said in SENTENCES
    ]
    path = disk.jsonl(*rows)
    records, report = scan([{"path": str(path)} | ({"answer_style": style} if style else {})], name_images=name_images)
    assert not report.bad and [record.response for record in records] == SENTENCES * 2 and not report.rewritten
    for record in records:
        asked = prompt_text(record).split("<|vision_end|>")[-1]
        thinking = " First output the thinking process in <think> </think> tags and then output the answer in <answer>"
        assert asked.startswith("What?" + (thinking if record.cot else "<|im_end|>"))


def test_where_boxes_are_needed_a_sentence_is_asked_for_its_box(disk):
    """Stage 2 learns no response, so that the form of the answer is the style's."""
    row = {"images": ["a.png"], "conversations": turns("<image>What?", "The cat <|box_start|>(1,2),(3,4)<|box_end|>.")}
    (record,), _ = scan([disk.jsonl(row)], needs="box")
    assert record.response is None and record.box == (1, 2, 3, 4) and "Format:<|box_start|>" in prompt_text(record)


def test_the_form_is_the_prompts_to_the_letter(disk):
    """Several boxes on a line each, and UniVG-R1's one without space around it, which its reward does not know."""
    said = ["(0,0),(500,250) (1,2),(3,4)", "<think>a</think><answer> (0,0),(500,250) </answer>"]
    rows = [{"images": ["a.png"], "conversations": turns("<image>Where?", text)} for text in said]
    records, _ = records_of(disk, *rows)
    taught = ["(0,0),(500,250)\n(1,2),(3,4)", "<think>a</think><answer>(0,0),(500,250)</answer>"]
    assert [record.response for record in records] == taught
    assert parse(taught[1]).format and not parse(said[1]).format


def test_rewritten_responses_are_counted(disk):
    """In the report and on the console, by file and form."""
    rows = [{"images": ["a.png"], "conversations": turns("<image>Where?", said)} for said in ("[1, 2, 30, 40]",) * 3]
    rows += [
        {"images": ["a.png"], "conversations": turns("<image>Where?", said)} for said in ("(1,2,3,4)", "(1,2),(3,4)")
    ]
    rows += [
        {"images": ["a.png", "b.png"], "target_image": 1, "conversations": turns("<image><image>It?", "(1,2),(3,4)")}
    ]
    path = disk.jsonl(*rows)
    _, report = scan([path], name_images=True)
    assert report.rewritten == {str(path): {"bbox_2d": 3, "univg_r1": 1, "univg_r1 with images": 1}}
    write_report(disk.path / "data_report.json", {"sft": report})
    assert json.loads((disk.path / "data_report.json").read_text())["sft"]["rewritten"] == report.rewritten
    told = [line.strip() for line in report.details()]
    assert "3 responses rewritten to bbox_2d" in told and "1 response rewritten to univg_r1 with images" in told
    _, untouched = scan([disk.jsonl(rows[-2])])
    assert not untouched.rewritten and not any("rewritten to" in line for line in untouched.details())


@pytest.mark.parametrize("style", ["univg_r1", "bbox_2d", "box_tokens"])
@pytest.mark.parametrize(
    "think", ["I will use <answer> tags. It is in Image-2.", "Not </answer> (1,2),(3,4)", "a <answer>b</answer>"]
)
def test_reasoning_is_never_changed(disk, think, style):
    """Tags in it are words; the answer is what comes behind it."""
    row = {"images": ["a.png", "b.png"], "target_image": 1, "conversations": turns(
        "<image><image>Where?", f"<think>{think}</think>\n<answer>(0,0),(500,250)</answer>")}  # fmt: skip
    (record,), report = scan([{"path": str(disk.jsonl(row)), "answer_style": style}], name_images=True)
    before, answer = record.response.split("</think>\n")
    assert before == f"<think>{think}" and answer.startswith("<answer>") and answer.endswith("</answer>")
    assert "Image-2: " in answer or '"image": 2' in answer
    assert not report.bad and sum(report.rewritten[str(disk.path / "data.jsonl")].values()) == 1


def test_what_only_the_response_tells_its_target_learns(disk):
    """Image and label, of a row whose targets have neither."""
    row = {"images": ["a.png", "b.png"], "question": "It?", "targets": [{"box": [0, 0, 500, 250]}], "cot": False}
    said = '[{"bbox_2d": [0, 0, 500, 250], "label": "dog", "image": 2}]'
    (record,), report = scan([disk.jsonl(row | {"response": said})])
    assert (record.target_image, record.targets[0].label) == (1, "dog")
    assert record.response == said and not report.rewritten
