"""`GrpoConfig.like("verl")` against verl 0.9.1's own actor loss: loss and gradients, every option times every other.

verl adds 1e-8 to the length of a response in "seq-mean-token-mean" and in geo_mean: there 3e-8 instead of 1e-9. It also
bounds the sampler's log-ratio by 20 from below, where its weight is then exp(-20) = 2.1e-9 and ours less.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import univg_kernels as uk
from ops.peers import verl_oracle
from ops.peers.problem import Problem, assert_like, hard_cases, make_problem

# verl's name of a policy loss -> ours
MODES: dict[str, dict[str, Any]] = {
    "vanilla": {"loss_type": "grpo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence_token"},
    "cispo": {"loss_type": "cispo"},
    "gpg": {"loss_type": "reinforce"},
}
AGGREGATIONS = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")
KLS = {None: None, "k1": "k1", "mse": "k2", "low_var_kl": "k3", "k1+": "k1+", "k3+": "k3+", "k2+": "k2"}
# (rollout_is, rollout_is_threshold) -> ours; "0.6_1.7" drops what lies outside
SAMPLER: dict[tuple[str | None, str | float], dict[str, Any]] = {
    (None, 2.0): {},
    ("token", 1.3): {"importance_sampling_mode": "token_truncate", "importance_sampling_clip_max": 1.3},
    ("sequence", 1.3): {"importance_sampling_mode": "sequence_truncate", "importance_sampling_clip_max": 1.3},
    ("token", "0.6_1.7"): {
        "importance_sampling_mode": "token_mask",
        "importance_sampling_clip_min": 0.6,
        "importance_sampling_clip_max": 1.7,
    },
    ("sequence", "0.6_1.7"): {
        "importance_sampling_mode": "sequence_mask",
        "importance_sampling_clip_min": 0.6,
        "importance_sampling_clip_max": 1.7,
    },
}


def known(problem: Problem) -> Problem:
    """verl has no answer to a sampler that does not know a log-probability."""
    return replace(problem, sampling=torch.where(problem.sampling.isnan(), problem.old, problem.sampling))


def check(
    problem: Problem,
    mode: str,
    *,
    aggregation: str = "seq-mean-token-mean",
    kl: str | None = None,
    sampler: tuple[str | None, str | float] = (None, 2.0),
    entropy: float = 0.0,
    ours: dict[str, Any] | None = None,
    theirs: dict[str, Any] | None = None,
    rows: dict[str, Any] | None = None,
    per_token: bool = True,
) -> None:
    config = MODES.get(mode, {}) | SAMPLER[sampler] | {"entropy_coef": entropy} | (ours or {})
    actor = {"entropy_coeff": entropy, "loss_agg_mode": aggregation} | (theirs or {})
    given = dict(rows or {})
    if kl:
        config |= {"beta": 0.3, "kl_estimator": KLS[kl]}
        actor |= {"use_kl_loss": True, "kl_loss_coef": 0.3, "kl_loss_type": kl}
        given["ref_logp"] = problem.flat(problem.ref)
    if sampler[0]:
        given["sampling_logp"] = problem.flat(problem.sampling)
    if per_token:
        given["token_advantages"] = problem.flat(problem.token_advantages)
    else:
        given["advantages"] = problem.advantages
    config["loss_aggregation"] = aggregation
    if aggregation == "token-sum":
        config["loss_aggregation"], given = "token-mean", {"denominator": 1.0} | given
    if aggregation == "seq-mean-token-sum-norm":
        config["max_completion_length"] = problem.mask.shape[1]  # the width of the padded batch, unless it is told
    assert_like(
        problem,
        uk.GrpoConfig.like("verl", **config),
        lambda lp, h: verl_oracle.loss(
            problem,
            (lp, h),
            loss_mode=mode,
            rollout_is=sampler[0],
            rollout_is_threshold=sampler[1],
            per_token=per_token,
            **actor,
        ),
        given,
        rtol=3e-8 if aggregation == "seq-mean-token-mean" else 1e-9,
        atol=2.1e-9 if (theirs or {}).get("bypass") else 1e-10,
    )


@pytest.mark.parametrize("mode", MODES)
def test_every_option_times_every_other(mode: str) -> None:
    problem = known(make_problem())
    # 1e12: no bound, so that the one of the log-ratio is seen
    deltas = (3.0, 1.5, 1e12) if mode == "vanilla" else (3.0,)
    for aggregation, kl, sampler, entropy, delta in product(AGGREGATIONS, KLS, SAMPLER, (0.0, 0.02), deltas):
        check(
            problem,
            mode,
            aggregation=aggregation,
            kl=kl,
            sampler=sampler,
            entropy=entropy,
            ours={"epsilon_low": 0.3, "epsilon_high": 0.25} | ({"delta": delta} if mode == "vanilla" else {}),
            theirs={"clip_ratio_low": 0.3, "clip_ratio_high": 0.25, "clip_ratio_c": delta},
        )


def test_sapo() -> None:
    problem = known(make_problem())
    for kl, sampler, entropy, per_token in product(KLS, SAMPLER, (0.0, 0.02), (True, False)):
        ours = {"loss_type": "sapo", "sapo_temperature_pos": 0.8, "sapo_temperature_neg": 1.05}
        theirs = {"tau_pos": 0.8, "tau_neg": 1.05}
        check(problem, "sapo", kl=kl, sampler=sampler, entropy=entropy, per_token=per_token, ours=ours, theirs=theirs)


def test_geo_mean() -> None:
    """Its policy term is a mean over all responses, KL and entropy over those with tokens, or as many as verl is told.

    A dropped weight (0) counts as 1e-10 in verl's geometric mean, as 0 in ours: the weights here are cut, not dropped.
    """
    problem, told = known(make_problem()), len(make_problem().advantages)
    for kl, sampler, entropy in product(KLS, list(SAMPLER)[:3], (0.0, 0.02)):
        ours = {"loss_type": "gmpo", "epsilon_low": 0.4, "epsilon_high": 0.3}
        theirs = {"clip_ratio_low": 0.4, "clip_ratio_high": 0.3, "global_batch_size": told}
        check(problem, "geo_mean", kl=kl, sampler=sampler, entropy=entropy, per_token=False, ours=ours, theirs=theirs)


def test_reinforce_in_bypass_mode_weighs_the_present_policy() -> None:
    problem = known(make_problem(5))
    for aggregation, kl, sampler, entropy in product(AGGREGATIONS, KLS, SAMPLER, (0.0, 0.02)):
        check(
            problem,
            "reinforce",
            aggregation=aggregation,
            kl=kl,
            sampler=sampler,
            entropy=entropy,
            ours={"loss_type": "reinforce"},
            theirs={"bypass": True},
            rows={"old_logp": None},
        )


def test_gspo_bounds_the_log_ratio_of_a_response_from_above_only() -> None:
    problem = known(make_problem())
    old = problem.old.clone()
    old[0], old[1], old[4] = problem.logp[0] - 12, problem.logp[1] + 24, problem.logp[4] - 24
    for aggregation, entropy in product(AGGREGATIONS, (0.0, 0.02)):
        check(replace(problem, old=old), "gspo", aggregation=aggregation, kl="k3+", entropy=entropy)


@pytest.mark.parametrize("name", ["no advantage", "on policy"])
def test_hard_batches(name: str) -> None:
    problem = known(hard_cases()[name])
    for mode, aggregation, kl, sampler in product(MODES, AGGREGATIONS, KLS, SAMPLER):
        check(problem, mode, aggregation=aggregation, kl=kl, sampler=sampler, entropy=0.02, per_token=False)


def test_a_batch_without_tokens_is_zero_where_verl_divides_by_zero() -> None:
    problem = known(hard_cases()["nothing counts"])
    for mode, aggregation, kl in product(MODES, AGGREGATIONS, (None, "low_var_kl")):
        told = {"batch_num_tokens": 11, "global_batch_size": 6, "loss_scale_factor": 6}
        check(problem, mode, aggregation=aggregation, kl=kl, entropy=0.02, theirs=told)
    assert verl_oracle.loss(problem, (problem.logp, problem.entropy)).isnan()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_micro_batches_are_what_the_denominator_says(aggregation: str) -> None:
    problem, tokens, responses, ranks, scale = known(make_problem(4)), 37, 11, 2, 9
    told = {"batch_num_tokens": tokens, "global_batch_size": responses, "dp_size": ranks, "loss_scale_factor": scale}
    denominator = {"token-mean": tokens, "token-sum": 1.0}.get(aggregation, responses) / ranks
    for mode, kl in product(MODES, (None, "low_var_kl")):
        rows = {"denominator": denominator}
        if aggregation == "seq-mean-token-sum-norm":
            rows["denominator"] *= scale / problem.mask.shape[1]
        check(problem, mode, aggregation=aggregation, kl=kl, entropy=0.02, theirs=told, rows=rows)


@pytest.mark.parametrize("normalize", [True, False])
def test_advantages(normalize: bool) -> None:
    rewards = torch.tensor([0.0, 1.0, 0.3, 0.7, 0.7, 0.7, 0.9, 0.2], dtype=torch.float64)
    config = uk.GrpoConfig.like("verl", scale_rewards="group" if normalize else "none")
    ours = uk.group_advantage(rewards, torch.tensor([0, 3, 6, 7, 8]), config=config, backend="reference").advantages
    theirs = verl_oracle.advantages(rewards, [0, 0, 0, 1, 1, 1, 2, 3], normalize)
    # There a group of one is divided by 1 + 1e-6 in fp32, and the mean of equal rewards need not be one of them.
    torch.testing.assert_close(ours, theirs, rtol=6e-8 if normalize else 1e-9, atol=1e-9)


def test_defaults_are_those_of_its_actor() -> None:
    theirs, config = verl_oracle.defaults(), uk.GrpoConfig.like("verl")
    assert (theirs["clip_ratio_low"], theirs["clip_ratio_high"]) == (config.epsilon_low, config.epsilon_high)
    assert theirs["clip_ratio_c"] == config.delta and theirs["loss_agg_mode"] == config.aggregation
    assert (theirs["tau_pos"], theirs["tau_neg"]) == (config.sapo_temperature_pos, config.sapo_temperature_neg)
    assert theirs["entropy_coeff"] == config.entropy_coef and theirs["use_kl_loss"] is (config.beta != 0)


def test_a_bound_far_above_is_no_dual_clip() -> None:
    """clip_ratio_c is of vanilla alone: cispo and gpg have none, whatever clip_ratio_high is."""
    problem = known(make_problem())
    wide = {"clip_ratio_high": 4.0}
    for mode in ("cispo", "gpg"):
        check(problem, mode, ours={"epsilon_high": 4.0}, theirs=wide)
    check(problem, "vanilla", ours={"epsilon_high": 4.0, "delta": 6.0}, theirs=wide | {"clip_ratio_c": 6.0})


def test_what_cannot_be_matched_is_refused() -> None:
    with pytest.raises(ValueError, match="delta"):
        uk.GrpoConfig.like("verl", delta=1.1)
    with pytest.raises(ValueError, match="loss_aggregation"):
        uk.GrpoConfig.like("verl", loss_type="sapo", loss_aggregation="seq-mean-token-sum")
