"""`GrpoConfig.like("univg_r1")` against the published formula, from rewards and IoUs to the gradient."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
import univg_kernels as uk
from ops.peers import univg_r1_oracle
from ops.peers.problem import Problem, assert_like, hard_cases, make_problem, without_empty

REWARDS = [1.7, 0.2, 1.1, 0.4, 2.0, 0.9]
IOUS = [0.7, 0.1, 0.55, 0.99, 1.0, 0.995]  # the second group's log weight is negative


def check(problem: Problem, rewards: list[float], **settings: float | str | bool) -> None:
    group_size = len(problem.lengths) // 2
    difficulty = {"difficulty": settings["weight"], "difficulty_power": settings.get("power", 1.0)}
    config = uk.GrpoConfig.like(
        "univg_r1",
        epsilon_low=settings["epsilon"],
        epsilon_high=settings["epsilon"],
        beta=settings["beta"],
        **difficulty,
    )
    rows = {
        "rewards": torch.tensor(rewards, dtype=torch.float64),
        "accuracy": torch.tensor(IOUS, dtype=torch.float64),
        "cu_groups": torch.tensor([0, group_size, 2 * group_size]),
        "ref_logp": problem.flat(problem.ref),
    }
    if settings.get("on_policy"):
        rows["old_logp"] = None

    def theirs(lp: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return univg_r1_oracle.loss(problem, lp, rewards=rewards, ious=IOUS, group_size=group_size, **settings)

    assert_like(problem, config, theirs, rows)


def filled(problem: Problem) -> Problem:
    """Six responses with tokens: an empty one is 0/0 in UniVG-R1."""
    some = without_empty(problem)
    names = ("logp", "entropy", "old", "ref", "sampling", "mask", "advantages", "token_advantages")
    again = {name: torch.cat([getattr(some, name), getattr(problem, name)[:1].flip(-1)]) for name in names}
    return replace(some, **again, lengths=(*some.lengths, problem.mask.shape[1]))


@pytest.mark.parametrize("weight", ["exp", "power", "log"])
def test_every_option_times_every_other(weight: str) -> None:
    problem = filled(make_problem())
    for epsilon, beta, power, on_policy in product((0.2, 0.05), (0.0, 0.04), (1.0, 2.0), (False, True)):
        check(problem, REWARDS, weight=weight, epsilon=epsilon, beta=beta, power=power, on_policy=on_policy)


def test_equal_rewards_leave_the_kl() -> None:
    for problem in (make_problem(1), hard_cases()["on policy"]):
        for weight, beta in product(("exp", "power", "log"), (0.0, 0.04)):
            check(filled(problem), [0.5] * 6, weight=weight, epsilon=0.2, beta=beta)


def test_an_empty_response_is_no_loss_where_the_source_divides_by_zero() -> None:
    problem, settings = make_problem(), {"weight": "exp", "epsilon": 0.2, "beta": 0.04}
    theirs = univg_r1_oracle.loss(problem, problem.logp, rewards=REWARDS, ious=IOUS, group_size=3, **settings)
    assert theirs.isnan()
    check(problem, REWARDS, empty=0.0, **settings)
