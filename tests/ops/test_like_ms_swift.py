"""`GrpoConfig.like("ms_swift")` against ms-swift 4.6.0's own trainer: loss and gradients, every option combined."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import univg_kernels as uk
from ops.peers import ms_swift_oracle
from ops.peers.problem import Problem, assert_like, hard_cases, make_problem

PPO = ("grpo", "bnpo", "dr_grpo", "dapo")
LOSSES = (*PPO, "cispo", "sapo")
LEVELS = ("token", "sequence", "sequence_token")
MODES = (None, "token_truncate", "token_mask", "sequence_truncate")


def known(problem: Problem) -> Problem:
    """ms-swift has no answer to a sampler that does not know a log-probability."""
    return replace(problem, sampling=torch.where(problem.sampling.isnan(), problem.old, problem.sampling))


def own_settings(loss_type: str) -> dict[str, Any]:
    bounds = {"loss_type": loss_type, "epsilon_low": 0.3, "epsilon_high": 1.4 if loss_type == "cispo" else 0.25}
    return bounds | ({"max_completion_length": 9} if loss_type == "dr_grpo" else {})


def check(
    problem: Problem,
    mode: str | None,
    *,
    per_token: bool = True,
    theirs: dict[str, Any] | None = None,
    rows: dict[str, Any] | None = None,
    **settings: Any,
) -> None:
    """One combination. `settings` have one name on both sides."""
    ours, given = dict(settings), {}
    swift = {"sampled": mode is not None, "per_token": per_token} | settings | (theirs or {})
    if mode is not None:
        given["sampling_logp"] = problem.flat(problem.sampling)
        ours |= {"importance_sampling_mode": mode, "importance_sampling_clip_max": 1.3}
        swift |= {"rollout_importance_sampling_mode": mode, "rollout_importance_sampling_threshold": 1.3}
    if settings.get("beta", 0.04):
        given["ref_logp"] = problem.flat(problem.ref)
    if per_token:
        given["token_advantages"] = problem.flat(problem.token_advantages)
    else:
        given["advantages"] = problem.advantages
    assert_like(
        problem,
        uk.GrpoConfig.like("ms_swift", **ours),
        lambda lp, h: ms_swift_oracle.loss(problem, (lp, h), **swift),
        given | (rows or {}),
    )


@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_option_times_every_other(loss_type: str) -> None:
    problem = known(make_problem())
    deltas = (None, 1.5, 1.1) if loss_type in PPO else (None,)
    options = product(LEVELS, (0.0, 0.3), MODES, (1.0, 0.6), deltas, (True, False))
    for level, beta, mode, quantile, delta, per_token in options:
        own = {"importance_sampling_level": level, "beta": beta, "top_entropy_quantile": quantile, "delta": delta}
        check(problem, mode, per_token=per_token, **own_settings(loss_type), **own)


@pytest.mark.parametrize("name", ["nothing counts", "no advantage", "on policy"])
def test_hard_batches(name: str) -> None:
    problem = known(hard_cases()[name])
    for loss_type, level, mode, quantile in product(LOSSES, LEVELS, MODES, (1.0, 0.6)):
        # Told how many tokens the whole batch has: of this one's none would make 0/0 there.
        check(
            problem,
            mode,
            per_token=False,
            theirs={"num_items": 11.0},
            rows={"denominator": 11.0} if loss_type in ("dapo", "cispo") else {},
            **own_settings(loss_type),
            importance_sampling_level=level,
            top_entropy_quantile=quantile,
        )


def test_sequence_mask_is_matched_by_its_token_ratios() -> None:
    """`like` refuses the mode and names token_importance_ratio: that it is the same."""
    problem = known(make_problem(2))
    weights = ms_swift_oracle.rollout_weights(problem, "sequence_mask", 1.05)
    dropped = (weights[problem.mask.bool()] == 0).sum()
    assert 0 < dropped < problem.mask.sum()
    for loss_type, beta in product(LOSSES, (0.0, 0.3)):
        mode = {"rollout_importance_sampling_mode": "sequence_mask", "rollout_importance_sampling_threshold": 1.05}
        check(
            problem,
            None,
            theirs=mode | {"sampled": True},
            rows={"token_importance_ratio": problem.flat(weights)},
            **own_settings(loss_type),
            beta=beta,
        )


def test_off_policy_mask_is_matched_by_a_mask() -> None:
    """`like` refuses the threshold and names mask and denominator: that they are the same."""
    problem = known(make_problem(3))
    kept = ms_swift_oracle.kept_off_policy(problem, -2.0)
    assert 0 < kept.sum() < len(kept)
    tokens = problem.mask.sum().item()
    for loss_type, level in product(LOSSES, LEVELS):
        masked = replace(problem, mask=problem.mask * kept[:, None])
        theirs = {"off_policy_sequence_mask_delta": -2.0, "num_items": float(tokens), "sampled": True}
        rows = {"mask": problem.flat(masked.mask).bool()}
        if loss_type in ("dapo", "cispo"):
            rows["denominator"] = float(tokens)
        check(
            problem,
            None,
            per_token=False,
            theirs=theirs,
            rows=rows,
            **own_settings(loss_type),
            importance_sampling_level=level,
        )


@pytest.mark.parametrize("loss_type", LOSSES)
def test_micro_batches_are_what_the_denominator_says(loss_type: str) -> None:
    """ms-swift leaves the division by the accumulation steps to transformers, and undoes it for dapo and cispo."""
    problem, steps, items = known(make_problem(4)), 3, 37.0
    rows = {"denominator": items / steps} if loss_type in ("dapo", "cispo") else {}
    theirs = {"current_gradient_accumulation_steps": steps, "num_items": items}
    check(problem, None, theirs=theirs, rows=rows, **own_settings(loss_type))


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_advantages(scale_rewards: str, group_size: int) -> None:
    rewards = torch.tensor([0.0, 1.0, 0.3, 0.7, 0.7, 0.7, 0.7, 0.7], dtype=torch.float64)
    config = uk.GrpoConfig.like("ms_swift", scale_rewards=scale_rewards)
    groups = torch.arange(0, len(rewards) + 1, group_size)
    ours = uk.group_advantage(rewards, groups, config=config, backend="reference").advantages
    theirs = ms_swift_oracle.advantages(rewards, group_size, scale_rewards)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_defaults_are_those_of_its_arguments() -> None:
    theirs, config = ms_swift_oracle.defaults(), uk.GrpoConfig.like("ms_swift")
    for name in ("delta", "importance_sampling_level", "top_entropy_quantile"):
        assert theirs[name] == getattr(config, name)
    assert theirs["epsilon"] == config.epsilon_low == config.epsilon_high and theirs["epsilon_high"] is None
    assert (theirs["tau_pos"], theirs["tau_neg"]) == (config.sapo_temperature_pos, config.sapo_temperature_neg)
    assert theirs["rollout_importance_sampling_mode"] is None and config.importance_sampling_mode == "none"
    assert theirs["rollout_importance_sampling_threshold"] == config.importance_sampling_clip_max


def test_what_cannot_be_matched_is_refused() -> None:
    with pytest.raises(ValueError, match="token_importance_ratio"):
        uk.GrpoConfig.like("ms_swift", importance_sampling_mode="sequence_mask")
    with pytest.raises(ValueError, match="give mask and denominator"):
        uk.GrpoConfig.like("ms_swift", off_policy_mask_threshold=0.1)
