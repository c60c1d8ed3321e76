"""Scores of a held-out set: the figures, what never leaves the denominator, intervals, the console table."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from univg_fast.evaluate.metrics import bootstrap_interval, iou, paired_difference, results_table, summarize

GT = [100, 100, 300, 300]


def row(uid: str, box, task: str = "region", **more) -> dict:
    return {"uid": uid, "task": task, "box": box, "gt": GT, **more}


def test_iou_of_known_boxes():
    assert iou(GT, GT) == 1.0
    assert iou([200, 100, 400, 300], GT) == pytest.approx(1 / 3)
    assert iou([300, 300, 400, 400], GT) == 0.0


@pytest.mark.parametrize("box", [None, [], [1, 2, 3], [300, 300, 100, 100], [100, math.nan, 300, 300], [0, 0, 0, 9]])
def test_a_box_that_cannot_be_scored_is_zero_and_stays_in_the_denominator(box):
    result = summarize([row("a", GT), row("b", box)])
    assert result["n"] == 2 and result["acc@0.5"] == 0.5 and result["miou"] == 0.5
    assert sum(result["counts"].values()) == 1


def test_a_stored_iou_cannot_rescue_a_row_without_box_and_nan_is_counted():
    rows = [row("a", None, iou=0.9), row("b", GT, iou=math.nan), row("c", GT, iou=1.5), row("d", GT, iou=0.6)]
    result = summarize(rows)
    assert result["miou"] == pytest.approx(0.15)
    assert result["counts"]["no_box"] == 1 and result["counts"]["bad_iou"] == 2


def test_out_of_range_boxes_and_repeated_uids_are_scored_and_counted():
    result = summarize([row("a", [100, 100, 300, 1300]), row("a", GT)])
    assert result["counts"]["out_of_range_box"] == 1 and result["counts"]["duplicate_uid"] == 1
    assert result["miou"] == pytest.approx((200 / 1200 + 1) / 2)


def test_macro_is_the_mean_over_tasks_and_micro_over_samples():
    rows = [row("a", GT, "x"), row("b", GT, "x"), row("c", GT, "x"), row("d", None, "y")]
    result = summarize(rows)
    assert result["acc@0.5"] == 0.75 and result["macro"]["acc@0.5"] == 0.5
    assert result["tasks"]["x"]["n"] == 3 and result["tasks"]["y"]["acc@0.3"] == 0.0


def test_thresholds_are_inclusive():
    result = summarize([row("a", [100, 100, 200, 300])])  # exactly half of the ground truth
    assert result["acc@0.5"] == 1.0 and result["acc@0.7"] == 0.0


def test_the_summary_is_json():
    summary = summarize([row("a", GT, format=1), row("b", None, format=0)])
    assert json.loads(json.dumps(summary)) == summary
    assert summary["format"] == 0.5


def test_no_rows_and_a_bad_ground_truth_are_errors():
    with pytest.raises(ValueError, match="no rows"):
        summarize([])
    with pytest.raises(ValueError, match="ground truth 0 is .*inverted_box"):
        summarize([{"uid": "a", "task": "t", "box": GT, "gt": [3, 3, 1, 1]}])


def test_bootstrap_interval_agrees_with_the_normal_one_and_repeats():
    values = np.arange(400) < 120  # 30%
    low, high = bootstrap_interval(values)
    margin = 1.96 * math.sqrt(0.3 * 0.7 / 400)
    assert low == pytest.approx(0.3 - margin, abs=0.012) and high == pytest.approx(0.3 + margin, abs=0.012)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values, seed=1) != (low, high)


def test_targets_of_one_answer_are_drawn_together():
    """Four equal targets of an answer say no more than one."""
    rows = [row(str(i), GT if i % 3 else None) for i in range(100)]
    many = [one | {"uid": f"{one['uid']}#{k}", "sample": one["uid"]} for one in rows for k in range(4)]
    before = [row(str(i), GT if i % 5 else None) for i in range(100)]
    twice = [one | {"uid": f"{one['uid']}#{k}", "sample": one["uid"]} for one in before for k in range(4)]
    for part in (lambda result: result, lambda result: result["macro"], lambda result: result["tasks"]["region"]):
        alone, together = part(summarize(rows)), part(summarize(many))
        assert together["acc@0.5_ci95"] == alone["acc@0.5_ci95"] and together["miou_ci95"] == alone["miou_ci95"]
    assert paired_difference(many, twice)["ci95"] == paired_difference(rows, before)["ci95"]


def test_paired_difference_looks_only_at_shared_samples_and_is_narrower_than_unpaired():
    before = [row(str(i), GT if i % 2 else None) for i in range(200)]
    after = [row(str(i), GT if i % 2 or i % 10 == 0 else None) for i in range(20, 200)]
    result = paired_difference(after, before)
    assert result["n"] == 180 and result["difference"] == pytest.approx(0.1)
    low, high = result["ci95"]
    assert 0.0 < low < 0.1 < high < 0.15  # unpaired, the interval would be 0.1 +- 0.1
    with pytest.raises(ValueError, match="no uid"):
        paired_difference(after, [row("other", GT)])


def test_the_console_table_fits_80_columns_uncut():
    tasks = ("referring_grounding", "object_tracking")  # the longest name of the built-in tasks
    rows = [row(str(i), GT, tasks[i % 2]) for i in range(4)]
    evals = {name: summarize(rows) for name in ("before", "sft", "grpo")}
    console = Console(width=80, file=io.StringIO())
    console.print(results_table(evals))
    text = console.file.getvalue()
    assert "…" not in text and "referring_grounding" in text and "all samples" in text
    assert max(map(len, text.splitlines())) <= 80
    assert next(line for line in text.splitlines() if "all samples" in line).split().count("100") == 12
