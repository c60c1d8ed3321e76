"""Every reward term by hand, the recipes, and functions of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from univg_fast.config import load_config
from univg_fast.config.load import to_yaml
from univg_fast.config.read import ConfigError
from univg_fast.config.reward_recipes import RECIPES
from univg_fast.rewards import TERMS, Settings, score
from univg_fast.structs import Record, Target

A, B = Target((0, 0, 100, 100), 0, "a"), Target((200, 200, 400, 400), 1, "b")


def record(*targets: Target, images: int = 3, style: str = "univg_r1") -> Record:
    names = tuple(f"{i}.png" for i in range(images))
    return Record("u", "f:7", names, "q", targets, answer_style=style)


def value(term: str, answer: str, wanted: Record, parser: str = "strict", **settings: Any) -> float:
    text = f"<think>so</think><answer>{answer}</answer>"
    lengths = settings.pop("lengths", None)
    scores = score([text], [wanted], {term: 1.0}, Settings(parser=parser, **settings), lengths)
    assert scores.total[0] == scores.parts[term][0]
    return float(scores.total[0])


ONE, TWO = record(A), record(A, B)
OBJECTS = record(A, B, style="bbox_2d")
HALF = "(0,0),(100,50)"  # IoU 0.5 with A
BOTH = "Image-1: (0,0),(100,100)\nImage-2: (200,200),(400,400)"
CASES = [
    ("iou", HALF, ONE, 0.5),
    ("iou", "nothing", ONE, 0.0),
    ("iou", BOTH, TWO, 1.0),
    ("iou_threshold", HALF, ONE, 1.0),
    ("iou_threshold", "(0,0),(100,49)", ONE, 0.0),
    ("iou_dual", HALF, ONE, 0.5),
    ("iou_dual", "(0,0),(100,90)", ONE, 1.0),
    ("iou_dual", "(0,0),(100,9)", ONE, 0.0),
    ("iou_dual", "(0,0),(100,10)", ONE, 0.1),
    ("giou", HALF, ONE, 0.5),
    ("giou", "(300,0),(400,100)", ONE, -0.5),
    ("giou", "nothing", ONE, -1.0),
    ("giou", "(100,100),(0,0)", ONE, -1.0),
    ("giou", "(50,50),(50,50)", ONE, -1.0),
    ("center", "(100,100),(0,0)", ONE, 0.0),
    ("center", "(50,50),(50,50)", ONE, 0.0),
    ("format", BOTH, TWO, 1.0),  # what the prompt asks for where there are several
    ("center", "(90,90),(110,110)", ONE, 1.0),
    ("center", "(90,90),(111,110)", ONE, 0.0),
    ("center", "nothing", ONE, 0.0),
    ("image", "Image-1: " + HALF, ONE, 1.0),
    ("image", "Image-2: " + HALF, ONE, 0.0),
    ("image", HALF, ONE, 0.0),
    ("image", HALF, record(A, images=1), 1.0),
    ("image_set", BOTH, TWO, 1.0),
    ("image_set", "Image-1: " + HALF, TWO, 0.5),
    ("image_set", "Image-1: (1,2),(3,4) Image-3: (1,2),(3,4)", TWO, 1 / 3),
    ("image_set", HALF, TWO, 0.0),
    ("matching", BOTH, TWO, 1.0),
    ("matching", "Image-2: (200,200),(400,400) Image-1: " + HALF, TWO, 0.75),
    ("matching", "Image-2: (0,0),(100,100) Image-1: (200,200),(400,400)", TWO, 0.0),
    ("matching", BOTH + " Image-1: (1,1),(2,2) Image-1: (1,1),(2,2)", TWO, 0.5),
    ("matching", "Image-1: " + HALF, TWO, 0.25),
    ("matching", "(200,200),(400,400) " + HALF, TWO, 0.75),
    ("matching_gated", "(200,200),(400,400) " + HALF, TWO, 0.0),
    ("matching_gated", BOTH, TWO, 1.0),
    ("matching_gated", HALF, record(A, images=1), 0.5),
    ("matching_gated", HALF, record(Target(A.box)), 0.5),  # the file does not tell the image
    ("matching_dual", "Image-2: (200,200),(400,390) Image-1: (0,0),(100,9)", TWO, 0.5),
    ("f1", BOTH, TWO, 1.0),
    ("f1", "Image-1: " + HALF, TWO, 2 / 3),
    ("f1", "Image-1: (0,0),(100,49)", TWO, 0.0),
    ("f1", "nothing", TWO, 0.0),
    ("count", BOTH, TWO, 0.0),
    ("count", HALF, TWO, -0.5),
    ("count", HALF * 9, TWO, -1.0),
    ("count", "nothing", TWO, -1.0),
    ("format", '[{"bbox_2d": [0,0,100,100], "image": 1}]', OBJECTS, 1.0),
    ("format_strict", BOTH, TWO, 1.0),
    ("format_strict", BOTH + " or so", TWO, 0.0),
    ("format_tags", BOTH + "<answer>", TWO, 0.75),
    ("matching", '[{"bbox_2d": [0,0,100,100], "image": 1}, {"bbox_2d": [200,200,400,400], "image": 2}]', OBJECTS, 1.0),
    ("repetition", "a b c d e", ONE, 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("term", "answer", "wanted", "expected"), CASES)
def test_a_term(term: str, answer: str, wanted: Record, expected: float) -> None:
    assert value(term, answer, wanted) == pytest.approx(expected, abs=1e-6)


def test_every_term_is_tried() -> None:
    assert set(TERMS) == {term for term, *_ in CASES} | {"length"}


@pytest.mark.parametrize(("tokens", "expected"), [(10, 0), (192, 0), (208, -0.25), (256, -1), (400, -1)])
def test_length(tokens: int, expected: float) -> None:
    """DAPO's equation 13 with L_max = 256 and L_cache = 64."""
    assert value("length", "a", ONE, lengths=[tokens]) == pytest.approx(expected)


def test_length_needs_lengths() -> None:
    with pytest.raises(ValueError, match="reward length: expected the number of tokens of each completion"):
        value("length", "a", ONE)


def test_repetition_counts_runs_of_words() -> None:
    """Four runs of two words, two of them the same."""
    scores = score(["a b a b c"], [ONE], {"repetition": 1.0}, Settings(repetition_ngram=2))
    assert scores.total[0] == pytest.approx(3 / 4 - 1)


def test_a_target_without_an_image_is_named() -> None:
    for term in ("image", "image_set"):
        with pytest.raises(ValueError, match=rf"reward {term}: the record u \(f:7\) has several images and does not"):
            score(["a", "b"], [ONE, record(Target(A.box))], {term: 1.0})


def test_a_batch_scores_each_completion_against_its_own_record() -> None:
    """Records of unlike numbers of targets and images, some of them the same object, as a group has it."""
    records = [TWO, ONE, TWO, record(B, images=1), OBJECTS, ONE]
    texts = [f"<think>a</think><answer>{x}</answer>" for x in (BOTH, HALF, "no", "(200,200),(400,300)", BOTH, BOTH)]
    names = ("iou", "matching", "f1", "count", "image_set", "giou")
    together = score(texts, records, dict.fromkeys(names, 1.0), Settings(parser="strict"))
    for i, (text, one) in enumerate(zip(texts, records, strict=True)):
        alone = score([text], [one], dict.fromkeys(names, 1.0), Settings(parser="strict"))
        for name in names:
            assert together.parts[name][i] == alone.parts[name][0], (i, name)
        assert together.boxes[i] == alone.boxes[0]


@pytest.mark.parametrize("parser", ["univg_r1", "strict", "lenient"])
def test_no_completions_at_all(parser: str) -> None:
    """What a rank has whose samples could not be decoded."""
    scores = score([], [], dict.fromkeys(TERMS, 1.0), Settings(parser=parser), [])
    assert scores.total.shape == (0,) and scores.boxes == [] and all(x.shape == (0,) for x in scores.parts.values())


GROUP = [  # of one prompt with two targets: (answer, weighted sum under mirg_rl, under mirg_rl_gated)
    (BOTH, 3.0, 3.0),
    ("Image-1: " + HALF, 1 + 0.5 + 0.25, 1 + 0.5 + 0.25),
    (HALF + " (200,200),(400,400)", 1 + 0 + 0.75, 1.0),
    ("in the first image", 0.0, 0.0),
]


@pytest.mark.parametrize(("name", "column"), [("mirg_rl", 1), ("mirg_rl_gated", 2)])
def test_the_dual_reward_of_mirg_rl(name: str, column: int) -> None:
    texts = [f"<think>a</think><answer>{answer}</answer>" for answer, *_ in GROUP]
    recipe = RECIPES[name]
    scores = score(texts, [TWO] * 4, recipe["terms"], Settings(parser=recipe["parser"]))
    np.testing.assert_allclose(scores.total, [row[column] for row in GROUP], atol=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_configuration(name: str, tmp_path: Path) -> None:
    """It says everything, is written out in full, and what was written gives the same again."""
    config = load_config([f"--rewards.recipe={name}"])
    recipe = RECIPES[name]
    assert config.rewards.terms == recipe["terms"] and config.rewards.parser == recipe["parser"]
    assert config.rewards.difficulty_from == recipe["difficulty_from"] in recipe["terms"]
    assert set(recipe["terms"]) <= set(TERMS)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(["--config", str(tmp_path / "config.yaml")]) == config


def test_a_recipe_and_other_terms_are_a_conflict() -> None:
    with pytest.raises(ConfigError, match=r"rewards\.terms: expected none beside rewards\.recipe=cgc, which says .*"):
        load_config(["--rewards.recipe=cgc", "--rewards.terms.iou=2"])
    with pytest.raises(ConfigError, match=r"rewards\.recipe: expected .*, got 'mirg'"):
        load_config(["--rewards.recipe=mirg"])
    with pytest.raises(ConfigError, match=r"rewards\.iou_low: expected at most rewards\.iou_high \(0\.9\), got 0\.95"):
        load_config(["--rewards.iou_low=0.95"])


OWN = """
import numpy as np

def shortness(answers):
    return -np.array([len(text) for text in answers.texts]) / 100

def labels(answers):
    pairs = zip(answers.answers, answers.records)
    return [float(bool(a.boxes) and a.boxes[0].label == r.targets[0].label) for a, r in pairs]

def broken(answers):
    return [float("nan")] * len(answers.texts)

def short(answers):
    return [1.0]

limit = 3
"""


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
        (f"{path}:absent", r"mine\.py:absent: expected a function of the file \(shortness, labels, broken, short\)"),
        (f"{path}:limit", r"mine\.py:limit: expected a function of the file"),
        (f"{path}:broken", r"mine\.py:broken: expected 2 finite numbers, one a completion, got NaN or an infinity"),
        (f"{path}:short", r"mine\.py:short: expected 2 finite numbers, one a completion, got shape \[1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            score(texts, [OBJECTS] * 2, {name: 1.0})
    config = load_config([f'--rewards.terms={{"{path}:labels": 0.5}}', f"--rewards.difficulty_from={path}:labels"])
    assert config.rewards.terms == {f"{path}:labels": 0.5}
    (tmp_path / "bad.py").write_text("import nothing_of_this_name")
    with pytest.raises(ValueError, match="bad.py:f: importing the file failed: ModuleNotFoundError"):
        score(texts, [OBJECTS] * 2, {f"{tmp_path}/bad.py:f": 1.0})
