"""Completions parsed and scored as a step of stage 2 does it: `rows` answers of about 256 tokens (960 characters), on
the CPU, where texts are. UniVG-R1's reward against a loop over texts with regular expressions; every recipe and every
term by itself, and UniVG-R1's of texts that are not all ASCII and of boxes in pixels; the first groups of these are
proved against the same scored one completion at a time."""

from __future__ import annotations

import re

import numpy as np
import torch
import univg_kernels as uk

from univg_fast.structs import Record, Target

from ..device import Device
from ..shapes import Shape, Shapes
from ..work import Case, Judge, Outcome, Variant, Work

PROVED = 64  # completions that are scored one at a time, too
PAIR = r"\((\d+),\s*(\d+)\),\s*\((\d+),\s*(\d+)\)"
FORM = re.compile(rf"<think>.*?</think>\s*<answer>{PAIR}</answer>$", re.DOTALL)
ANSWER, BOX = re.compile(r"<answer>(.*?)</answer>", re.DOTALL), re.compile(PAIR)
SENTENCE = (
    "The object in the first image is a red cup left of the plate; in Image-2 it stands by the window (half way). "
)
TALK = {
    "one é": SENTENCE.replace("cup", "cupé", 1) + SENTENCE * 9,
    "curly quotes": "The object in the first image is a “red” cup; in Image-2 it stands by the man’s window — far off. "
    * 9,
    "NBSP": (SENTENCE * 9).replace("in Image-2 it", "in\u00a0Image\u00a02 it"),
    "Chinese": "第一张图里是一个红色的杯子，在盘子的左边；在第２张图里，它放在窗户旁边。" * 12,
}
Ends = list[tuple[tuple[float, float], ...]]  # of each text, of each image
PIXELS = ((640.0, 480.0), (308.0, 504.0))


def cases(shapes: Shapes) -> list[Case]:
    return [Case("completions", d, s, "", build, share=0.6) for s in shapes.get("completions", ()) for d in s.dtypes]


def build(shape: Shape, dtype: torch.dtype, device: Device) -> Work:
    # late: the trainer's configuration wants jsonargparse, and no other op does
    from univg_fast.config.reward_recipes import RECIPES
    from univg_fast.rewards import TERMS, score

    texts, records = answers(shape, "")

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

    judge, face = Judge(lambda: loop, lambda: loop), f"univg {uk.resolve('cpu')}"
    variants = {"python loop": Variant(lambda: loop, judge), face: Variant(lambda: ours, judge, own=True)}
    rewards = {name: (recipe["terms"], recipe["parser"]) for name, recipe in RECIPES.items()}
    rewards |= {f"term {name}": ({name: 1.0}, "strict") for name in TERMS}
    named = answers(shape, "Image-2: ")
    scored = {name: _scored(*named, *reward) for name, reward in rewards.items()}
    theirs = rewards["univg_r1"]
    scored |= {f"univg_r1, {name}": _scored(*answers(shape, "", talk), *theirs) for name, talk in TALK.items()}
    scored["univg_r1, boxes in pixels"] = _scored(texts, records, *theirs, [PIXELS] * len(texts))
    return Work(variants | {f"{face}, {name}": variant for name, variant in scored.items()})


def answers(shape: Shape, image: str, talk: str = SENTENCE * 9) -> tuple[list[str], list[Record]]:
    """A group of eight to a record; every seventh completion has no right form."""
    think = talk[: 4 * shape.length - 110]
    texts, records = [], []
    for i in range(shape.rows):
        if i % 8 == 0:
            x = i % 900
            record = Record(str(i), f"f:{i}", ("a", "b"), "q", (Target((x, 200, x + 100, 400), 1),))
        end = "" if i % 7 else " done"
        box = f"({x + i % 50},210),({x + 100},{400 + i % 9})"
        texts.append(f"<think>{think}</think>\n<answer>{image}{box}</answer>{end}")
        records.append(record)
    return texts, records


def _scored(
    texts: list[str], records: list[Record], terms: dict[str, float], parser: str, ends: Ends | None = None
) -> Variant:
    from univg_fast.rewards import Settings, score

    settings, lengths = Settings(parser), [200 + i % 100 for i in range(len(texts))]

    def alone() -> Outcome:
        each = [
            score([texts[i]], [records[i]], terms, settings, [lengths[i]], ends[i : i + 1] if ends else None).total
            for i in range(len(texts[:PROVED]))
        ]
        return {"reward": torch.from_numpy(np.concatenate(each)).double()}

    def together() -> Outcome:
        return {"reward": torch.from_numpy(score(texts, records, terms, settings, lengths, ends).total[:PROVED])}

    return Variant(lambda: together, Judge(lambda: alone, lambda: alone), own=True)


def _iou(p: list[int], q: list[int]) -> float:
    w, h = min(p[2], q[2]) - max(p[0], q[0]), min(p[3], q[3]) - max(p[1], q[1])
    inter = w * h if w > 1 and h > 1 else 0
    union = (p[2] - p[0]) * (p[3] - p[1]) + (q[2] - q[0]) * (q[3] - q[1]) - inter
    return inter / union if inter else 0.0
