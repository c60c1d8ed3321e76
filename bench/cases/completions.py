"""Completions parsed and scored as a step of stage 2 does it: UniVG-R1's reward of `rows` answers of about 256 tokens
(960 characters), against a loop over texts with regular expressions. On the CPU, where texts are."""

from __future__ import annotations

import re

import torch
import univg_kernels as uk

from univg_fast.rewards import score
from univg_fast.structs import Record, Target

from ..device import Device
from ..shapes import Shape, Shapes
from ..work import Case, Judge, Outcome, Variant, Work

PAIR = r"\((\d+),\s*(\d+)\),\s*\((\d+),\s*(\d+)\)"
FORM = re.compile(rf"<think>.*?</think>\s*<answer>{PAIR}</answer>$", re.DOTALL)
ANSWER, BOX = re.compile(r"<answer>(.*?)</answer>", re.DOTALL), re.compile(PAIR)
SENTENCE = (
    "The object in the first image is a red cup left of the plate; in Image-2 it stands by the window (half way). "
)


def cases(shapes: Shapes) -> list[Case]:
    return [Case("completions", d, s, "", build, share=0.3) for s in shapes.get("completions", ()) for d in s.dtypes]


def build(shape: Shape, dtype: torch.dtype, device: Device) -> Work:
    """A group of eight to a record; every seventh completion has no right form."""
    think = (SENTENCE * 9)[: 4 * shape.length - 110]
    texts, records = [], []
    for i in range(shape.rows):
        if i % 8 == 0:
            x = i % 900
            record = Record(str(i), f"f:{i}", ("a", "b"), "q", (Target((x, 200, x + 100, 400), 1),))
        end = "" if i % 7 else " done"
        texts.append(f"<think>{think}</think>\n<answer>({x + i % 50},210),({x + 100},{400 + i % 9})</answer>{end}")
        records.append(record)

    def loop() -> Outcome:
        rewards = []
        for text, record in zip(texts, records, strict=True):
            answer = ANSWER.search(text)
            box = BOX.search(answer[1]) if answer else None
            iou = _iou([int(x) for x in box.groups()], list(record.targets[0].box)) if box else 0.0
            rewards.append(iou + (FORM.search(text) is not None))
        return {"reward": torch.tensor(rewards, dtype=torch.float64)}

    def ours() -> Outcome:
        return {"reward": torch.from_numpy(score(texts, records, {"iou": 1.0, "format": 1.0}).total)}

    judge = Judge(lambda: loop, lambda: loop)
    own = Variant(lambda: ours, judge, own=True)
    return Work({"python loop": Variant(lambda: loop, judge), f"univg {uk.resolve('cpu')}": own})


def _iou(p: list[int], q: list[int]) -> float:
    w, h = min(p[2], q[2]) - max(p[0], q[0]), min(p[3], q[3]) - max(p[1], q[1])
    inter = w * h if w > 1 and h > 1 else 0
    union = (p[2] - p[0]) * (p[3] - p[1]) + (q[2] - q[0]) * (q[3] - q[1]) - inter
    return inter / union if inter else 0.0
