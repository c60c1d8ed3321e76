"""`GrpoConfig.like("trl")` against TRL 1.16.0's own trainer: loss and gradients, every option times every other."""

from __future__ import annotations

from collections import defaultdict
from itertools import product
from typing import Any

import pytest
import torch
import univg_kernels as uk
from ops.peers import trl_oracle
from ops.peers.problem import Problem, assert_like, hard_cases, make_problem

PPO = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
LOSSES = (*PPO, "cispo", "sapo", "vespo")
LEVELS = ("token", "sequence")
KLS = ({"beta": 0.0}, {"beta": 0.3, "use_bias_correction_kl": False}, {"beta": 0.3, "use_bias_correction_kl": True})
# "none": the sampler's log-probabilities are there, but nobody corrects; None: they are not.
MODES = (None, "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
ENTROPY = (
    {},
    {"entropy_coef": 0.02},
    {"top_entropy_quantile": 0.6},
    {"entropy_coef": 0.02, "top_entropy_quantile": 0.6},
)


def check(
    problem: Problem,
    mode: str | None,
    *,
    bounds: dict[str, float] | None = None,
    per_token: bool = False,
    **settings: Any,
) -> None:
    """One combination. `settings` have one name on both sides."""
    bounds = bounds or {}
    ours, vllm, rows = dict(settings), {}, {}
    if mode is not None:
        rows["sampling_logp"] = problem.flat(problem.sampling)
        ours |= {"importance_sampling_mode": mode} | {f"importance_sampling_{k}": v for k, v in bounds.items()}
        vllm = {"use_vllm": True, "sampled": True, "vllm_importance_sampling_correction": mode != "none"}
        vllm |= {} if mode == "none" else {"vllm_importance_sampling_mode": mode}
        vllm |= {f"vllm_importance_sampling_{k}": v for k, v in bounds.items()}
    if settings["beta"]:
        rows["ref_logp"] = problem.flat(problem.ref)
    if per_token:
        rows["token_advantages"] = problem.flat(problem.token_advantages)
    else:
        rows["advantages"] = problem.advantages
    assert_like(
        problem,
        uk.GrpoConfig.like("trl", **ours),
        lambda lp, h: trl_oracle.loss(problem, (lp, h), per_token=per_token, **vllm, **settings),
        rows,
    )


def own_settings(loss_type: str) -> dict[str, Any]:
    bounds = {"epsilon_low": 0.3, "epsilon_high": 1.4 if loss_type == "cispo" else 0.25}
    if loss_type == "dr_grpo":
        bounds["max_completion_length"] = 9
    if loss_type == "sapo":  # TRL makes an fp32 tensor of it, in which 1.05 would not be 1.05
        bounds |= {"sapo_temperature_pos": 0.75, "sapo_temperature_neg": 1.125}
    return {"loss_type": loss_type} | bounds


@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_option_times_every_other(loss_type: str) -> None:
    # A reference farther off would leave ratio·k3 no digits: its gradient cancels to d out of exp(d).
    problem = make_problem(far=9.0)
    deltas = (None, 1.5, 1.1) if loss_type == "grpo" else (None, 1.5) if loss_type in PPO else (None,)
    for level, kl, mode, drift, entropy, delta in product(LEVELS, KLS, MODES, (None, 0.1), ENTROPY, deltas):
        masks = {"off_policy_mask_threshold": drift, "delta": delta, "importance_sampling_level": level}
        check(problem, mode, **own_settings(loss_type), **kl, **entropy, **masks)


@pytest.mark.parametrize("name", ["nothing counts", "no advantage", "on policy"])
def test_hard_batches(name: str) -> None:
    problem = hard_cases(far=9.0)[name]
    modes = (None, "token_truncate", "sequence_mask")
    for loss_type, level, kl, mode, entropy in product(LOSSES, LEVELS, KLS, modes, ENTROPY[::3]):
        check(problem, mode, importance_sampling_level=level, **own_settings(loss_type), **kl, **entropy)


def test_without_old_log_probs_the_ratio_is_one() -> None:
    problem = make_problem(2, far=9.0)
    for loss_type in LOSSES:
        settings = own_settings(loss_type) | {"beta": 0.3}
        assert_like(
            problem,
            uk.GrpoConfig.like("trl", **settings),
            lambda lp, h, s=settings: trl_oracle.loss(problem, (lp, h), on_policy=True, **s),
            {"advantages": problem.advantages, "ref_logp": problem.flat(problem.ref), "old_logp": None},
        )


def test_advantages_per_token_and_bounds_on_both_sides() -> None:
    problem = make_problem(3, far=9.0)
    both = {"clip_min": 0.7, "clip_max": 1.9}
    for loss_type, kl, mode, drift in product(LOSSES, KLS, MODES[2:], (None, 0.1)):
        settings = own_settings(loss_type) | kl | {"off_policy_mask_threshold": drift}
        check(problem, mode, bounds=both, per_token=True, **settings)


@pytest.mark.parametrize("seed", range(3))
def test_gmpo(seed: int) -> None:
    problem = make_problem(seed, far=9.0)
    # TRL adds -A of a response without rows (its ratio is exp(0)), divided by the number of responses: no gradient.
    empty = -problem.advantages[2].item() / len(problem.advantages)
    for kl, quantile, high in product(KLS, (1.0, 0.6), (0.4, 0.2)):
        settings = {
            "loss_type": "gmpo",
            "epsilon_low": 0.4,
            "epsilon_high": high,
            "top_entropy_quantile": quantile,
        } | kl
        assert_like(
            problem,
            uk.GrpoConfig.like("trl", **{k: v for k, v in settings.items() if k != "use_bias_correction_kl"}),
            lambda lp, h, s=settings: trl_oracle.loss(problem, (lp, h), use_vllm=True, sampled=True, **s),
            {
                "advantages": problem.advantages,
                "ref_logp": problem.flat(problem.ref) if kl["beta"] else None,
                "sampling_logp": problem.flat(problem.sampling),  # to no avail there
            },
            constant=empty,
        )


@pytest.mark.parametrize("loss_type", LOSSES)
def test_micro_batches_are_what_the_denominator_says(loss_type: str) -> None:
    """TRL divides by the accumulation steps, or by the tokens of the generation batch shared out over them."""
    problem, steps, generation_steps, items = make_problem(4, far=9.0), 3, 2, 37.0
    settings = own_settings(loss_type) | {"beta": 0.3}
    denominator = {
        "bnpo": problem.mask.sum().item() * steps,
        **dict.fromkeys(("dapo", "cispo", "vespo"), items * steps / generation_steps),
    }.get(loss_type, len(problem.advantages) * steps)
    theirs = settings | {"current_gradient_accumulation_steps": steps, "steps_per_generation": generation_steps}
    assert_like(
        problem,
        uk.GrpoConfig.like("trl", **settings, entropy_coef=0.02 / steps),
        lambda lp, h: trl_oracle.loss(problem, (lp, h), num_items=items, entropy_coef=0.02, **theirs),
        {"advantages": problem.advantages, "ref_logp": problem.flat(problem.ref), "denominator": denominator},
    )


@pytest.mark.parametrize("loss_type", PPO)
def test_metrics_of_the_token_level_are_those_that_it_logs(loss_type: str) -> None:
    problem = make_problem(6, far=9.0)
    for delta in (None, 1.1):
        logged: dict[str, list[float]] = defaultdict(list)
        settings = own_settings(loss_type) | {"beta": 0.3, "use_bias_correction_kl": False, "delta": delta}
        trl_oracle.loss(problem, (problem.logp, problem.entropy), logged=logged, **settings)
        out = uk.policy_loss(
            problem.flat(problem.logp),
            torch.tensor((0, *problem.lengths)).cumsum(0),
            entropy=problem.flat(problem.entropy),
            advantages=problem.advantages,
            old_logp=problem.flat(problem.old),
            ref_logp=problem.flat(problem.ref),
            mask=problem.flat(problem.mask).bool(),
            config=uk.GrpoConfig.like("trl", **settings),
            backend="reference",
        )
        ours = uk.summarize(out.metrics)
        names = ["kl", "entropy", *(f"clip_ratio/{side}_mean" for side in ("low", "high", "region"))]
        # A delta below 1 + epsilon_high hides the upper clip: TRL counts what it has bounded.
        assert ours["clip_ratio/low_mean"] > 0 and (ours["clip_ratio/high_mean"] > 0) is (delta is None)
        assert [ours[n] for n in names] == pytest.approx([logged[n][0] for n in names], rel=1e-6)


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_advantages(scale_rewards: str, group_size: int) -> None:
    rewards = torch.tensor([0.0, 1.0, 0.3, 0.7, 0.7, 0.7, 0.7, 0.7], dtype=torch.float64)
    config = uk.GrpoConfig.like("trl", scale_rewards=scale_rewards)
    groups = torch.arange(0, len(rewards) + 1, group_size)
    ours = uk.group_advantage(rewards, groups, config=config, backend="reference").advantages
    theirs = trl_oracle.advantages(rewards, group_size, scale_rewards)
    # TRL multiplies the variance by n/(n - 1) in fp32.
    torch.testing.assert_close(ours, theirs, rtol=1e-9 if scale_rewards == "none" else 6e-8, atol=1e-12)


def test_defaults_are_those_of_its_arguments() -> None:
    theirs = trl_oracle.defaults()
    config = uk.GrpoConfig.like("trl", max_completion_length=theirs["max_completion_length"])
    names = {"importance_sampling_mode", "importance_sampling_clip_max"}
    same = theirs.keys() & set(uk.GrpoConfig.__dataclass_fields__) - {"epsilon_high"}  # None there: as epsilon
    assert {f"vllm_{n}" for n in names} <= theirs.keys() and len(same) > 15
    assert {k: theirs[k] for k in same} == {k: getattr(config, k) for k in same}
    assert {n: theirs[f"vllm_{n}"] for n in names} == {n: getattr(config, n) for n in names}
    assert theirs["epsilon"] == config.epsilon_low == config.epsilon_high
