"""Reward terms of the user's own: found, checked, and their errors told with file, line, completion and record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from univg_fast.config import load_config
from univg_fast.rewards import Settings, score
from univg_fast.structs import Record, Target

OBJECTS = Record("u", "f:7", ("0.png",), "q", (Target((0, 0, 100, 100), 0, "a"),), answer_style="bbox_2d")

OWN = """
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

@dataclass
class Limits:
    least: float = 0.0

def shortness(answers):
    return -np.array([len(text) for text in answers.texts]) / 100

def labels(answers):
    pairs = zip(answers.answers, answers.records)
    return [float(bool(a.boxes) and a.boxes[0].label == r.targets[0].label) for a, r in pairs]

def broken(answers):
    return [float("nan")] * len(answers.texts)

def short(answers):
    return [1.0]

def deep(answers):
    return [sum(box.box[9] for box in answer.boxes) for answer in answers.answers]

def words(answers):
    return ["good" for text in answers.texts]

def together(answers):
    if len(answers.texts) > 1:
        raise RuntimeError("too many")
    return [0.0]

limit = 3
"""
LINE = OWN[: OWN.index("box[9]")].count("\n") + 1


def test_functions_of_the_user_s_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    texts = ['<think>a</think><answer>[{"bbox_2d": [0,0,100,100], "label": "a"}]</answer>', "x" * 50]
    weights = {f"{path}:shortness": 2.0, f"{path}:labels": 1.0, "iou": 1.0}
    scores = score(texts, [OBJECTS] * 2, weights, Settings(parser="strict"))
    assert scores.parts[f"{path}:labels"].tolist() == [1, 0]
    np.testing.assert_allclose(scores.total, [1 + 1 - 2 * len(texts[0]) / 100, -1.0], atol=1e-6)
    for name, message in (
        (f"{tmp_path}/none.py:f", r"rewards\.terms: .*none\.py:f: there is no such file"),
        (
            f"{path}:absent",
            r"mine\.py:absent: expected a function of the file \(dataclass, Limits, shortness, labels, broken",
        ),
        (f"{path}:limit", r"mine\.py:limit: expected a function of the file"),
        (
            f"{path}:broken",
            r"mine\.py:broken: expected 2 finite numbers, one a completion, got NaN or an infinity, "
            r"for completion 0 of record u \(f:7\): '<think>a",
        ),
        (f"{path}:short", r"mine\.py:short: expected 2 finite numbers, one a completion, got shape \[1\]"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            score(texts, [OBJECTS] * 2, {name: 1.0})
        assert len(str(caught.value)) < 600
    config = load_config([f'--rewards.terms={{"{path}:labels": 0.5}}', f"--rewards.difficulty_from={path}:labels"])
    assert config.rewards.terms == {f"{path}:labels": 0.5}
    (tmp_path / "bad.py").write_text("import nothing_of_this_name")
    with pytest.raises(ValueError, match=r"bad.py:f: importing the file failed: ModuleNotFoundError.* at .*bad.py:1"):
        score(texts, [OBJECTS] * 2, {f"{tmp_path}/bad.py:f": 1.0})


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            "deep",
            rf"got IndexError\('tuple index out of range'\) at .*mine\.py:{LINE}, "
            r"for completion 1 of record v \(f:8\): '<",
        ),
        ("words", r"got ValueError\(.*'good'.*\), for completion 0 of record u \(f:7\): 'no box'"),
        ("together", r"got RuntimeError\('too many'\) at .*mine\.py:\d+$"),
    ],
)
def test_an_error_in_a_term_of_one_s_own_has_its_place(tmp_path: Path, function: str, said: str) -> None:
    """The user's file and line, and the completion and record that do it by themselves."""
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    texts = ["no box", '<think>a</think><answer>[{"bbox_2d": [0,0,100,100]}]</answer>', "x" * 5000]
    records = [OBJECTS, replace(OBJECTS, uid="v", source="f:8"), OBJECTS]
    name = f"{path}:{function}"
    with pytest.raises(
        ValueError, match=rf"^reward {name}: expected 3 finite numbers, one a completion, {said}"
    ) as caught:
        score(texts, records, {name: 1.0}, Settings(parser="strict"))
    assert caught.value.__cause__ is not None and len(str(caught.value)) < 800


@pytest.mark.parametrize("culprit", [0, 36, 99])
def test_the_culprit_is_found_in_halves(tmp_path: Path, culprit: int) -> None:
    """A slow function, or one that counts what it does, is not called once for every completion."""
    path = tmp_path / "slow.py"
    path.write_text(
        "calls = []\n\n\ndef slow(answers):\n    calls.append(len(answers.texts))\n"
        "    return [1 / (text != 'bad') for text in answers.texts]\n\n\n"
        "def called(answers):\n    return [len(calls) - 1, sum(calls[1:])]\n"
    )
    texts = ["bad" if i == culprit else "good" for i in range(100)]
    with pytest.raises(ValueError, match=f"for completion {culprit} of record u"):
        score(texts, [OBJECTS] * 100, {f"{path}:slow": 1.0})
    calls, completions = score(["a", "b"], [OBJECTS] * 2, {f"{path}:called": 1.0}).parts[f"{path}:called"]
    assert calls <= 8 and completions <= 100
