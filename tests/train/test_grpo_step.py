"""Whole steps of stage 2, on one rank and on two: draws, mini-batches, groups left out, losses lost, stop requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow
Reports = dict[int, dict[str, Any]]


@pytest.fixture(scope="module")
def reports(launch: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """By number of ranks; two run ZeRO 2, whose every pass communicates."""
    found = {}
    for world, zero_stage in ((1, 0), (2, 2)):
        folder = tmp_path_factory.mktemp(f"world{world}")
        done = launch("grpo_step_worker.py", folder, zero_stage, world=world)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        found[world] = json.loads((folder / "report.json").read_text())
    return found


def test_prompts_are_drawn_until_enough_rewards_differ(reports: Reports) -> None:
    steps, cursor, used = reports[1]["dynamic"], 0, []
    for step in steps:
        draws = int(step["sampling/draws"])
        assert 1 <= draws <= 3 and step["cursor"] == cursor + draws == cursor + len(step["seeds"])
        assert len(step["trained"]) == step["sampling/kept"] <= 4
        assert step["sampling/kept"] == 4 or draws == 3
        assert step["sampling/wasted"] == pytest.approx(1 - step["sampling/kept"] / (4 * draws))
        assert step["towers"] == 0 < step["weights"], "the frozen tower is sent before the first step only"
        used += step["seeds"]
        cursor = step["cursor"]
    assert max(step["sampling/draws"] for step in steps) > 1, "nothing was drawn anew"
    assert len(used) == len(set(used)), "a seed was used twice"


def test_what_is_drawn_and_chosen_hangs_on_no_rank(reports: Reports) -> None:
    assert len(reports[1]["dynamic"]) == len(reports[2]["dynamic"]) == 3
    for one, two in zip(reports[1]["dynamic"], reports[2]["dynamic"], strict=True):
        by_rank = ("loss", "grad_norm")
        assert {k: v for k, v in one.items() if k not in by_rank} == {k: v for k, v in two.items() if k not in by_rank}
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5, abs=1e-6)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("case", ["moving", "moving, tower trains"])
def test_groups_of_one_rank_are_trained_by_all(reports: Reports, case: str) -> None:
    """With the same loss, gradient and weights; rollouts/ tell them where they were drawn."""
    moved, stayed = reports[2][case]
    assert stayed["imbalance"] == 1 and moved["imbalance"] < 0.2 and (stayed["rows"], moved["rows"]) == (2, 4)
    assert moved["trained"] == stayed["trained"] and len(moved["trained"]) == moved["num_samples"] == 4
    for name in ("loss", "grad_norm", "kl"):
        assert moved[name] == pytest.approx(stayed[name], rel=1e-4) and abs(moved[name]) > 0.01
    assert moved["apart"] < 1e-3
    alone = reports[1][case]
    assert alone[0] == alone[1] and alone[0]["imbalance"] == 0


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("case", ["all equal", "all equal, drawn anew"])
def test_without_anything_to_learn_nothing_moves(reports: Reports, world: int, case: str) -> None:
    """Nor by weight decay, and no number is a NaN."""
    found = reports[world][case]
    assert found["finite"] and not found["moved"] and found["rate"] > 0
    assert found["updates"] == found["skipped"] == found["num_samples"] == found["loss"] == 0
    assert found["cursor"] == (1 if case == "all equal" else 2)


def test_a_rank_without_anything_to_learn_takes_part(reports: Reports) -> None:
    found = reports[2]["one rank's equal"]
    assert found["finite"] and found["moved"] and found["updates"] == 1 and found["num_samples"] == 2
    assert not reports[1]["one rank's equal"]["moved"]


@pytest.mark.parametrize("world", [1, 2])
def test_old_log_probs_are_those_of_a_pass_of_their_own(reports: Reports, world: int) -> None:
    assert reports[world]["old"] <= 1e-5


@pytest.mark.parametrize("world", [1, 2])
def test_several_updates_of_one_rollout(reports: Reports, world: int) -> None:
    found = reports[world]["several"]
    assert found["updates"] == 4 and found["importance_sampling_ratio/max"] > 1.01
    assert found["scored_tokens"] == found["once"] > 0


def test_what_ranks_wait_for_is_that_of_each_update(reports: Reports) -> None:
    """And not of the step's rows together, which are near even."""
    assert reports[1]["waiting"] == {"told": 0, "found": 0}
    two = reports[2]["waiting"]
    assert two["told"] == pytest.approx(two["found"], rel=1e-6) and two["told"] > 0.3


def test_each_update_has_the_same_prompts_on_any_ranks_which_share_them_evenly(reports: Reports) -> None:
    assert reports[1]["shares"]["prompts"] == reports[2]["shares"]["prompts"]
    assert reports[1]["shares"]["counts"] == [[2]] * 8 and reports[2]["shares"]["counts"] == [[1, 1]] * 8


@pytest.mark.parametrize("world", [1, 2])
def test_features_of_the_draws_are_gone_before_the_update(reports: Reports, world: int) -> None:
    """Its rows have copies of those they need."""
    found = reports[world]["features"]
    assert found["left"] == [0] * world and found["had"] == {1: [4], 2: [4, 6]}[world]


@pytest.mark.parametrize("world", [1, 2])
def test_who_lost_a_loss_is_named(reports: Reports, world: int) -> None:
    found = reports[world]["lost"]
    *others, last = found["named"]
    assert not any(others) and len(last) == 1 and last[0] in found["uids"][-1]
    assert found["skipped"] == 1 and not found["moved"]


@pytest.mark.parametrize("world", [1, 2])
def test_a_stop_request_ends_the_draws_on_all_ranks(reports: Reports, world: int) -> None:
    assert reports[world]["stopped"] == {"abandoned": True, "draws": 2, "moved": False}
    assert reports[world]["code"] == 143
