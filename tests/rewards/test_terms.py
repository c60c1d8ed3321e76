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
UNTOLD, ALONE = record(Target(A.box)), record(A, images=1)
RIGHT = "(0,0),(100,100)"
# Of boxes that hit: what an image that is not there costs. (term, answer, record, value)
CASES += [
    (term, answer, wanted, 0.0)
    for term in ("matching", "matching_gated", "matching_dual", "f1", "image", "image_set")
    for wanted in (ONE, ALONE, UNTOLD)
    if not (wanted is UNTOLD and term.startswith("image"))
    for answer in (f"Image-0: {RIGHT}", f"Image-4: {RIGHT}", f"Image-00: {RIGHT}")
]


@pytest.mark.parametrize(("term", "answer", "wanted", "expected"), CASES)
def test_a_term(term: str, answer: str, wanted: Record, expected: float) -> None:
    assert value(term, answer, wanted) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("key", ["image", "img_idx", "image_id"])
@pytest.mark.parametrize("number", ["0", '"0"', '"Image-0"', "4", '"image 4"'])
@pytest.mark.parametrize("parser", ["strict", "lenient"])
def test_an_image_that_is_not_there_is_a_wrong_one_in_json_too(key: str, number: str, parser: str) -> None:
    for term in ("matching", "image_set"):
        text = f'[{{"bbox_2d": [0,0,100,100], "{key}": {number}}}, {{"bbox_2d": [200,200,400,400], "{key}": 2}}]'
        assert value(term, text, OBJECTS, parser) == pytest.approx(1 / 2 if term == "matching" else 1 / 3)


@pytest.mark.parametrize("term", [term for term in TERMS if term not in ("length", "repetition", "count")])
@pytest.mark.parametrize("parser", ["univg_r1", "strict", "lenient"])
def test_no_malformed_box_outscores_a_legal_miss(term: str, parser: str) -> None:
    for wanted in (ONE, ALONE, TWO, record(Target((0, 0, 1000, 1000), 0))):
        for miss in ("Image-1: (400,400),(500,600)", "(999,999),(1000,1000)"):
            named = miss[: miss.index("(")]
            least = value(term, miss, wanted, parser)
            for bad in ("(100,100),(0,0)", "(50,50),(50,50)", "(0,100),(100,100)", "(1000,0),(0,1000)"):
                assert value(term, named + bad, wanted, parser) <= least, (bad, miss)


def test_nothing_is_minus_zero() -> None:
    """It would stand in the logs."""
    texts = ["<think>a</think><answer>(0,0),(100,100)</answer>", "a b c d e"]
    scores = score(texts, [ONE] * 2, dict.fromkeys(TERMS, 1.0), Settings(parser="lenient"), [1, 1])
    for name, part in scores.parts.items():
        assert not np.signbit(part[part == 0]).any(), name


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"length_buffer": 0}, r"rewards\.length_buffer: expected a number above 0, got 0"),
        ({"length_limit": -1}, r"rewards\.length_limit: expected a number above 0, got -1"),
        ({"repetition_ngram": 0}, r"rewards\.repetition_ngram: expected a number above 0, got 0"),
        ({"iou_threshold": float("nan")}, r"rewards\.iou_threshold: expected a number from 0 to 1, got nan"),
        ({"iou_low": 0.95}, r"rewards\.iou_low: expected at most rewards\.iou_high \(0\.9\), got 0\.95"),
    ],
)
def test_settings_out_of_bounds(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings(**settings)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(weight: float) -> None:
    with pytest.raises(ValueError, match=r"rewards\.terms: iou: expected a finite weight, got (nan|inf)"):
        score(["a"], [ONE], {"iou": weight})


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
        with pytest.raises(
            ValueError, match=rf"f:7: record u: reward {term} compares images, and the file does not tell"
        ):
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


GROUP = [  # of one prompt with two targets: (answer, weighted sum under mirg_rl, under mirg_rl_ungated)
    (BOTH, 3.0, 3.0),
    ("Image-1: " + HALF, 1 + 0.5 + 0.25, 1 + 0.5 + 0.25),
    (HALF + " (200,200),(400,400)", 1.0, 1 + 0 + 0.75),
    ("Image-2: " + HALF + " Image-3: (200,200),(400,400)", 1 + 1 / 3, 1 + 1 / 3),
    ("Image-0: " + HALF + " Image-9: (200,200),(400,400)", 1.0, 1.0),
    ("in the first image", 0.0, 0.0),
]


@pytest.mark.parametrize(("name", "column"), [("mirg_rl", 1), ("mirg_rl_ungated", 2)])
def test_the_dual_reward_of_mirg_rl(name: str, column: int) -> None:
    texts = [f"<think>a</think><answer>{answer}</answer>" for answer, *_ in GROUP]
    recipe = RECIPES[name]
    scores = score(texts, [TWO] * len(GROUP), recipe["terms"], Settings(parser=recipe["parser"]))
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
    for given in (
        "parser=univg_r1",
        "difficulty_from=iou",
        "terms={iou: 1.0, format: 1.0}",
    ):  # defaults, without recipe
        with pytest.raises(ConfigError, match=rf"rewards\.{given.partition('=')[0]}: expected none beside .*, got "):
            load_config(["--rewards.recipe=mirg_rl", f"--rewards.{given}"])
    assert load_config(["--rewards.recipe=univg_r1", "--rewards.parser=univg_r1"]).rewards.parser == "univg_r1"
    with pytest.raises(ConfigError, match=r"rewards\.recipe: expected .*, got 'mirg'"):
        load_config(["--rewards.recipe=mirg"])
    with pytest.raises(ConfigError, match=r"rewards\.iou_low: expected at most rewards\.iou_high \(0\.9\), got 0\.95"):
        load_config(["--rewards.iou_low=0.95"])
