"""What the rewards say of a step's completions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from univg_fast.config import Config
from univg_fast.data.prompts import COT_SUFFIX, DIRECT_PREFIX, prompt_text
from univg_fast.data.records import parse_record
from univg_fast.structs import Completion, Record, Sample, Target
from univg_fast.train.scoring import Sampled, score_draw

RESIZED = ((644, 476), (308, 504))


def test_a_family_that_counts_in_pixels_is_scored_in_0_to_1000() -> None:
    """Each group by its own sizes, and what it wrote is what is kept."""
    nothing = np.zeros(0)
    samples = [
        Sample(
            Record("u", "f:1", ("a", "b"), "q", (Target((0, 0, 1000, 1000), image),)),
            nothing, nothing, nothing, ((1288, 952), (924, 1512)), resized=RESIZED,
        )
        for image in (0, 1)
    ]  # fmt: skip
    texts = [f"<think>a</think><answer>(0,0),({w},{h})</answer>" for w, h in RESIZED]
    group = [Completion(np.zeros(9, np.int64), nothing, "stop", text) for text in texts]
    config = replace(Config(), grpo=replace(Config().grpo, num_generations=2))
    scored = score_draw(Sampled(samples, [group, group], None), [], config, "resized")
    first, second = scored.scores.parts["iou"].reshape(2, 2).tolist()
    assert first[0] == second[1] == 1.0 and max(first[1], second[0]) < 0.6
    assert scored.scores.parts["format"].tolist() == [1.0] * 4
    assert scored.scores.boxes[0] == (0, 0, 1000, 1000)
    plain = score_draw(Sampled(samples, [group, group], None), [], config, "norm1000")
    assert plain.scores.boxes[0] == (0, 0, 644, 476)


@pytest.mark.parametrize("images", [1, 2])
def test_a_record_that_is_to_be_answered_directly_is_asked_and_rewarded_so(images: int, tmp_path: Path) -> None:
    """ "cot": false in a file of stage 2, beside records that reason."""
    names = [f"{k}.png" for k in range(images)]
    row = {"images": names, "question": "<image>" * images + "Find it.", "answer": [0, 0, 500, 500]}
    reasoned, direct = (
        parse_record(row | more, "rl.json:1", tmp_path, "u") for more in ({"id": "a"}, {"id": "b", "cot": False})
    )
    assert reasoned.cot and not direct.cot
    asked, plain = prompt_text(reasoned), prompt_text(direct)
    assert COT_SUFFIX in asked and "<think>" not in plain and "Find it." in plain
    assert (DIRECT_PREFIX in plain) == (images == 1), "UniVG-R1's notice, of one image"
    nothing = np.zeros(0)
    samples = [Sample(r, nothing, nothing, nothing, ((9, 9),) * images) for r in (reasoned, direct)]
    texts = ["<think>a</think><answer>(0,0),(500,500)</answer>", "(0,0),(500,500)"]
    group = [Completion(np.zeros(9, np.int64), nothing, "stop", text) for text in texts]
    config = replace(Config(), grpo=replace(Config().grpo, num_generations=2))
    scored = score_draw(Sampled(samples, [group, group], None), [], config, "norm1000")
    form, iou = (scored.scores.parts[name].reshape(2, 2).tolist() for name in ("format", "iou"))
    assert form[0] == [1, 0] and form[1][1] == 1, "each in the form that it was asked for"
    assert iou[0] == [1, 0] and iou[1][1] == 1
    assert scored.advantages[3] >= scored.advantages[2] and scored.advantages[0] > scored.advantages[1]
