"""Rows of every format, made as its public description says, for images a.png and b.png of 60x40 px (`Folder`).

Each has keys of no meaning to us, which must come back. `BOXES` are the records' boxes in 0-1000.
"""

from __future__ import annotations

from typing import Any

from univg_fast.data.scan import Report, scan
from univg_fast.structs import Record

COT = (
    " First output the thinking process in <think> </think> tags"
    " and then output the bounding box in <answer> </answer> tags."
)
THINK = "<think>It is to the left.</think>\n<answer>(0,0),(500,250)</answer>"


def turns(*texts: str, keys: tuple[str, str] = ("from", "value"), names: tuple[str, str] = ("human", "gpt")) -> list:
    return [{keys[0]: names[i % 2], keys[1]: text} for i, text in enumerate(texts)]


ROWS: dict[str, list[dict[str, Any]]] = {
    "univg_r1_stage1": [
        {"id": "u1", "images": ["a.png", "b.png"], "type": "gg_train", "split": 3,
         "conversations": turns("<image>\n<image>\nWhere is it?" + COT, THINK)},
        {"images": ["a.png"], "messages": [{"role": "system", "content": "You are a helpful assistant."},
         *turns("<image>Where?", THINK, keys=("role", "content"), names=("user", "assistant"))], "cot": None},
    ],
    "univg_r1_stage2": [
        {"question": "<image><image>Where is it?", "answer": [0, 0, 500, 250], "images": ["a.png", "b.png"]},
        {"id": 7, "question": "<image>It?", "answer": [0, 0, 500, 250], "image": "b.png", "target_image": 0,
         "task": "t"},
    ],
    "mgrounding": [
        {"id": "m1", "images": ["a.png", "b.png"], "type": "ot_train", "source": {"video": 5}, "conversations": turns(
            "<image>\n<image>\nFind <|object_ref_start|>the dog<|object_ref_end|>.",
            "It's in the second image. <|box_start|>(0,0),(500,250)<|box_end|>",
            "What colour is it?",
            "Brown.",
            "And where is it in the first image?",
            "<|box_start|>(100,100),(200,900)<|box_end|>",
        )},
    ],
    "mig_bench": [
        {"task": "common_object", "images": ["a.png", "b.png"], "need_format": True, "additional_info": "",
         "question": "Locate the common object in the second image.", "answer": [0.0, 0.0, 0.5, 0.25]},
        {"task": "group_grounding", "images": ["a.png", "b.png"], "need_format": False,
         "question": "<image><image>Where is <|object_ref_start|>the cat<|object_ref_end|>?",
         "additional_info": "Image-1: (0,0),(500,250)", "answer": [0, 0, 500, 250]},
        {"task": "region", "images": ["a.png", "b.png"], "need_format": True, "additional_info": "",
         "question": "Where does the second picture come from?", "answer": [0, 0, 500, 250]},
    ],
    "vlm_r1": [
        {"id": 1, "image": "a.png", "dataset": "refcoco",
         "conversations": turns("<image>Please provide the box of the dog.", "[0, 0, 30, 10]")},
        {"id": 2, "image": ["a.png", "b.png"], "conversations": turns(
            "<image><image>Where?", "<think>Left.</think><answer>"
            '[{"bbox_2d": [0, 0, 30, 10], "label": "dog", "image": 2}]</answer>')},
    ],
    "ms_swift": [
        {"images": ["a.png", "b.png"], "channel": "x", "messages": turns(
            "<image><image>Find the <ref-object>; it is not <bbox>.", "<bbox>",
            keys=("role", "content"), names=("user", "assistant")),
         "objects": {"ref": ["dog"], "bbox": [[30, 0, 60, 40], [0, 0, 30, 10]], "bbox_type": "real",
                     "image_id": [0, 1]}},
        {"images": ["a.png"], "messages": [{"role": "user", "content": "<image>Locate <ref-object>"}],
         "objects": {"ref": ["dog"], "bbox": [[0, 0, 0.5, 0.25]], "bbox_type": "norm1"}},
    ],
    "easy_r1": [
        {"problem": "<image>Where is it?", "answer": "[0, 0, 500, 250]", "images": ["a.png"]},
        {"problem": "Where?", "solution": [0, 0, 500, 250], "image": "a.png", "normalized_solution": [0, 0, 0.5, 0.25]},
    ],
    "verl": [
        {"data_source": "mine", "prompt": [{"role": "user", "content": "<image>Where?"}], "images": ["a.png"],
         "ability": "grounding", "reward_model": {"style": "rule", "ground_truth": [0, 0, 500, 250]},
         "extra_info": {"index": 0, "split": "train"}},
    ],
    "alpaca": [
        {"instruction": "<image>Where is it?", "input": "", "output": "(0,0),(500,250)", "images": ["a.png"], "n": 1},
        {"instruction": "<image>Where", "input": "is the dog?", "output": THINK, "images": ["a.png"]},
    ],
    "lisa": [
        {"image_path": "a.png", "instruction": "what barks", "boxes": [[0, 0, 30, 10], [1, 2, 3, 4]], "is": 1},
    ],
    "llmseg": [{"image_path": "a.png", "question": "what barks", "bbox": [[[0.0, 0.0], [30.0, 10.0]], [5, 5]]}],
    "reasonvos": [
        {"image_list": ["a.png", "b.png", "a.png"], "question": "what moves",
         "bbox_list": ["1,2,3,4", "[]", "[0, 0, 30, 10]"]},
    ],
    "revos": [
        {"video_id": "video", "frames": [0, 2, 1], "question": "what moves", "obj": 4,
         "bbox_list": ["", "", "0 0 30 10"]},
    ],
    "univg_fast": [
        {"images": ["a.png", "b.png"], "question": "Both?", "mine": [1], "targets": [
            {"box": [0, 0, 500, 250], "image": 0, "label": "dog"}, {"box": [1, 2, 3, 4], "image": 1}]},
    ],
}  # fmt: skip


def talk(*texts: str) -> list:
    return turns(*texts, keys=("role", "content"), names=("user", "assistant"))


# Records that not every format can hold; c.png has 100x80 px.
HARD: dict[str, list[dict[str, Any]]] = {
    "unknown image": [{"question": "<image><image>Where?", "answer": [0, 0, 500, 250], "images": ["a.png", "c.png"]}],
    "several targets": [
        {"images": ["a.png", "b.png"], "question": "Both?", "targets": [
            {"box": [0, 0, 500, 250], "image": 1, "label": "dog"}, {"box": [1, 2, 3, 4], "image": 0}]},
    ],
    "several targets with a response": [
        {"images": ["a.png", "c.png"], "question": "Both?", "cot": False, "response": "(0,0),(500,250) (1,2),(3,4)",
         "targets": [{"box": [0, 0, 500, 250], "image": 1}, {"box": [1, 2, 3, 4], "image": 0}]},
    ],
    "swift targets": [
        {"images": ["a.png", "c.png"], "messages": talk("<image><image>Both <ref-object>?", "<bbox><bbox>"),
         "objects": {"ref": ["dogs"], "bbox": [[0, 0, 30, 10], [10, 8, 20, 16]], "image_id": [0, 1]}},
    ],
    "several answers": [
        {"id": 3, "images": ["a.png", "c.png"], "conversations": turns(
            "<image>Where?", "(0,0),(500,250)", "<image>And in the second?", "Image-2: (1,2),(3,4)")},
        {"images": ["a.png", "c.png"], "conversations": turns(
            "<image><image>In the second?", "Image-2: (0,0),(500,250)", "And in the first?", "Image-1: (1,2),(3,4)")},
    ],
    "swift turns": [
        {"images": ["a.png", "c.png"], "messages": talk(
            "<image><image>Where is the <ref-object>?", "<bbox>", "And the <ref-object>?", "In image 2: <bbox>"),
         "objects": {"ref": ["dog", "cat"], "bbox": [[0, 0, 30, 10], [10, 8, 50, 40]], "image_id": [0, 1]}},
        {"images": ["a.png", "c.png"], "messages": talk("<image>Where?", "<bbox>", "<image>Now?", "In image 2: <bbox>"),
         "objects": {"ref": [], "bbox": [[0, 0, 30, 10], [10, 8, 50, 40]], "image_id": [0, 1]}},
        {"id": "s", "images": ["a.png"], "messages": talk("<image>Where?", "<bbox>", "Not <bbox>. What else is there?"),
         "objects": {"ref": [], "bbox": [[0, 0, 30, 10], [1, 2, 30, 40], [5, 5, 9, 9]]}},
    ],
    "label": [
        {"images": ["a.png", "b.png"], "question": "Where?", "targets": [
            {"box": [0, 0, 500, 250], "image": 1, "label": "a \"dog\""}]},
    ],
    "keys of its own": [
        {"images": ["a.png"], "conversations": turns("<image>Where?", THINK), "answer": 5, "mine": {"a": [1, None]}},
    ],
    "pixels": [
        {"image": ["a.png", "c.png"], "target_image": 1,
         "conversations": turns("<image><image>Where?", "[0, 0, 50, 20]")},
        {"image": "c.png", "conversations": turns("<image>Where?", "[10, 20, 50, 40]")},
    ],
    "tiny": [{"question": "<image>Where?", "answer": [0, 0, 1, 1], "images": ["a.png"]}],
    "style": [
        {"images": ["a.png"], "question": "Where?", "answer_style": "bbox_2d", "cot": False, "id": "x", "task": "y",
         "targets": [{"box": [0, 0, 500, 250]}]},
    ],
    "resized": [
        {"images": ["c.png"], "question": "Where?", "coordinates": "resized", "targets": [{"box": [0, 0, 56, 28]}]},
    ],
    "no reasoning": [
        {"images": ["a.png"], "conversations": turns("<image>Where?", "<answer>(0,0),(500,250)</answer>")},
        {"images": ["a.png"], "conversations": turns("<image>Where?", "(0,0),(500,250)"), "cot": False},
    ],
}  # fmt: skip


def records_of(folder: Any, *rows: dict[str, Any]) -> tuple[list[Record], Report]:
    """Those of good rows, written into `folder`."""
    records, report = scan([folder.jsonl(*rows)])
    assert not report.bad, report.bad
    return list(records), report
