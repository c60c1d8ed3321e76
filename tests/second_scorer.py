"""MIG-Bench scored a second time: plain Python from the words of docs/evaluation.md, no code of the package."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

WHOLE, DECIMAL = r"(\d+)", r"(\d+\.\d+)"
PATTERNS = [
    (rf"\({WHOLE},\s*{WHOLE}\),\s*\({WHOLE},\s*{WHOLE}\)", int),
    (rf"\[{DECIMAL},\s*{DECIMAL},\s*{DECIMAL},\s*{DECIMAL}\]", float),
    (rf"\({DECIMAL},{DECIMAL}\),\({DECIMAL},{DECIMAL}\)", float),
    (rf"\({DECIMAL},\s*{DECIMAL},\s*{DECIMAL},\s*{DECIMAL}\)", float),
    (rf"\[{WHOLE},\s*{WHOLE},\s*{WHOLE},\s*{WHOLE}\]", int),
    (rf"<box>{WHOLE}\s+{WHOLE}\s+{WHOLE}\s+{WHOLE}</box>", int),
]
ANY = r"-?\d+(?:\.\d+)?"
SPELLINGS = [
    rf"\(\s*({ANY})\s*,\s*({ANY})\s*\)\s*,?\s*\(\s*({ANY})\s*,\s*({ANY})\s*\)",
    rf"\(\s*({ANY})\s*,\s*({ANY})\s*,\s*({ANY})\s*,\s*({ANY})\s*\)",
    rf"\[\s*({ANY})\s*,\s*({ANY})\s*,\s*({ANY})\s*,\s*({ANY})\s*\]",
    rf"<box>\s*({ANY})[\s,]+({ANY})[\s,]+({ANY})[\s,]+({ANY})\s*</box>",
]


def legacy(text: str, name: str) -> tuple[list[float], str] | None:
    for pattern, kind in PATTERNS:
        matches = re.findall(pattern, text)
        if not matches:
            continue
        if name == "univg_r1":
            if kind is float:
                return None  # int("0.3") fails, and zeros are scored
            return [int(v) for v in (matches if len(matches) == 1 else matches[:-1])[0]], "thousandths"
        return [float(v) for v in matches[0]], "mixed"
    return None


def tagged(text: str) -> tuple[list[float], str] | None:
    """The last box of the last closed answer. One that begins inside of an earlier one is none of its own."""
    ends = text.rsplit("</answer>", 1)
    if len(ends) < 2 or "<answer>" not in ends[0]:
        return None
    body = ends[0].rsplit("<answer>", 1)[1]
    last, at = None, 0
    while True:
        found = [m for p in SPELLINGS if (m := re.compile(p).search(body, at))]
        if not found:
            break
        first = min(found, key=lambda m: m.start())
        last, at = first, first.end()
    if last is None:
        return None
    return [float(v) if "." in v else int(v) for v in last.groups()], "thousandths"


def overlap(box: list[float], unit: str, truth: list[float], protocol: str) -> float:
    given = []
    for v in box:
        small = unit == "mixed" and v < 1
        if protocol == "original":
            given.append(v if small else v / 1000)
        else:
            given.append(v * 1000 if small else v)
    (a, b, c, d), (e, f, g, h) = given, truth
    if not (a < c and b < d and e < g and f < h):
        return 0.0
    width, height = min(c, g) - max(a, e), min(d, h) - max(b, f)
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / ((c - a) * (d - b) + (g - e) * (h - f) - width * height)


def scores(data: Path, predictions: Path, protocol: str, parser: str) -> dict[str, Any]:
    """{"tasks": task -> figures, "macro", "micro", "no_box"}; figures are Acc@t by t and "miou"."""
    said = {line["id"]: line["text"] for line in map(json.loads, predictions.read_text().splitlines())}
    ious, none = defaultdict(list), 0
    for entry in json.loads(data.read_text()):
        text = said.get(entry["id"], "")
        read = tagged(text) if parser == "answer_tag" else legacy(text, parser)
        none += read is None
        ious[entry["task"]].append(0.0 if read is None else overlap(*read, entry["answer"], protocol))
    tasks = {task: figures(values) for task, values in ious.items()}
    macro = {m: math.fsum(t[m] for t in tasks.values()) / len(tasks) for m in next(iter(tasks.values()))}
    return {
        "tasks": tasks,
        "macro": macro,
        "micro": figures([v for part in ious.values() for v in part]),
        "no_box": none,
    }


def figures(values: list[float]) -> dict[str, float]:
    accuracy = {f"acc@{t}": len([v for v in values if v >= t]) / len(values) for t in (0.3, 0.5, 0.7, 0.9)}
    return accuracy | {"miou": math.fsum(values) / len(values)}
