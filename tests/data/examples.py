"""Rows of every format, made as its public description says, for images a.png and b.png of 60x40 px (`Folder`).

Each has keys of no meaning to us, which must come back. `BOXES` are the records' boxes in 0-1000.
"""

from __future__ import annotations

from typing import Any

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
