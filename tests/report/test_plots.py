"""Curves: what is computed before it is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from univg_fast.report.plots import MAX_POINTS, charts, phases, smooth, thin_out


def test_smooth_keeps_a_constant_and_a_straight_line_and_skips_nan():
    assert smooth(np.full(30, 2.0)) == pytest.approx(2.0)
    line = np.arange(40.0)
    assert smooth(line)[5:-5] == pytest.approx(line[5:-5])
    gap = np.ones(9)
    gap[4] = np.nan
    assert smooth(gap) == pytest.approx(1.0)
    assert len(smooth(np.array([3.0]))) == 1


def test_smooth_averages_noise_away():
    noise = np.random.default_rng(0).normal(size=1000)
    assert smooth(noise).std() < 0.2 * noise.std()


def test_thin_out_keeps_the_mean_and_bounds_the_points():
    steps, values = thin_out(np.arange(4000.0), np.random.default_rng(0).normal(size=4000))
    assert len(steps) == len(values) == MAX_POINTS
    assert values.mean() == pytest.approx(np.random.default_rng(0).normal(size=4000).mean())


def test_only_recorded_figures_become_charts():
    rows = [{"stage": "grpo", "step": s, "kl": 0.0, "rewards/iou/mean": 0.2, "miou": float("nan")} for s in (1, 2)]
    titles = [chart["title"] for chart in charts("grpo", rows)]
    assert titles == ["Reward and its parts", "KL to the reference"]


def test_phases_and_the_rest_of_the_step_add_up():
    rows = [{"step": 1, "timing_s/data": 1.0, "timing_s/step": 3.0}, {"step": 2, "timing_s/update": 2.0}]
    timed = {name: list(seconds) for name, seconds in phases(rows).items()}
    assert timed == {"data": [1.0, 0.0], "update": [0.0, 2.0], "other": [2.0, 0.0]}
    assert phases([{"step": 1, "loss": 1.0}]) == {}
