"""What the rewards say of a step's completions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from univg_fast.config import Config
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
