"""The whole loss table, drawn from: settings of GrpoConfig and rows that go with them."""

from __future__ import annotations

import random
from typing import Any

import torch
import univg_kernels as uk
from torch import Tensor

LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo", "gmpo", "reinforce"]
OWN_RATIO = ("gmpo", "reinforce")  # take level "token"
PAIRS = [
    (loss, level)
    for loss in LOSSES
    for level in ("token", "sequence", "sequence_token")
    if level == "token" or loss not in OWN_RATIO
]
Axis = list[tuple[dict[str, Any], dict[str, Any]]]  # choices: (settings, how the rows are made)


def settings(*choices: dict[str, Any]) -> Axis:
    return [(choice, {}) for choice in choices]


def made(*choices: str, axis: str) -> Axis:
    return [({}, {axis: choice}) for choice in choices]


IMPORTANCE: Axis = [({}, {"importance": how}) for how in ("none", "token given", "response given")]
IMPORTANCE += [
    (
        {
            "importance_sampling_mode": mode,
            "importance_sampling_aggregation": over,
            "importance_sampling_clip_min": 0.6,
            "importance_sampling_clip_max": 1.5,
        },
        {"importance": "sampled"},
    )
    for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    for over in ("sum", "mean")
]
AXES: dict[str, Axis] = {
    "kl": settings(
        {"beta": 0.0},
        *({"beta": 0.3, "kl_estimator": kind} for kind in ("k1", "k2", "k3", "k1+", "k3+")),
        {"beta": 0.3, "kl_estimator": "k3", "k3_clamp": True},
        {"beta": 0.3, "kl_estimator": "k3+", "k3_clamp": True},
    ),
    "reference": made("given", "given", "none", axis="reference"),
    "kl factors": settings(
        {}, {"use_bias_correction_kl": True}, {"importance_sampling_on_kl": True},
        {"use_bias_correction_kl": True, "importance_sampling_on_kl": True},
    ),
    "importance": IMPORTANCE,
    "off policy": settings({}, {"off_policy_mask_threshold": 0.05}),
    "top entropy": [({}, {}), ({"top_entropy_quantile": 0.5}, {}), ({"top_entropy_quantile": 0.3}, {})]
    + made("given", axis="threshold"),
    "bonus": settings({}, {"entropy_coef": 0.2}, {"entropy_coef": -0.1, "entropy_aggregation": "loss"}),
    "phi": made("none", "any sign", axis="phi"),
    "advantages": made("response", "token", axis="advantages"),
    "aggregation": settings(
        {}, *({"loss_aggregation": how} for how in (
            "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"
        )),
    ),
    "empty": settings({}, {"count_empty_responses": False}),
    "denominator": made("none", "number", "tensor", axis="denominator"),
    "bounds": settings(
        {}, {"log_ratio_min": -20.0, "log_ratio_max": 20.0}, {"log_ratio_min": -0.1, "log_ratio_max": 0.1},
        {"log_ratio_max": 0.25},
    ),
    "clip": settings(
        {}, {"delta": 1.4}, {"delta": 1.05}, {"epsilon_low": 0.1, "epsilon_high": 0.35, "cispo_two_sided": True},
        {"epsilon_high": 1.3, "sapo_temperature_pos": 0.7, "vespo_k_pos": 1.5, "vespo_lambda_neg": 2.5},
    ),
    "old": made("given", "given", "given", "none", axis="old"),
    "case": made(
        "usual", "usual", "usual", "nothing counts", "no advantage", "far", "one response", "no rows", "no responses",
        axis="case",
    ),
}  # fmt: skip


def draws(loss: str, level: str, number: int) -> list[tuple[uk.GrpoConfig, dict[str, str]]]:
    """Random points of the table, each axis going evenly through its choices: with 11 all of them."""
    rng = random.Random(f"{loss} {level}")
    columns = []
    for choices in AXES.values():
        column = [choices[k % len(choices)] for k in range(number)]
        rng.shuffle(column)
        columns.append(column)
    found = []
    for row in zip(*columns, strict=True):
        merged: dict[str, Any] = dict(loss_type=loss, importance_sampling_level=level, max_completion_length=7)
        how: dict[str, str] = {}
        for chosen, recipe in row:
            merged |= chosen
            how |= recipe
        found.append((uk.GrpoConfig(**merged), how))
    return found


def make_rows(seed: int, how: dict[str, str]) -> tuple[Tensor, Tensor, list[int], dict[str, Any]]:
    """(logp, entropy, cu_seqlens, arguments of policy_loss), fp64."""
    g = torch.Generator().manual_seed(seed)
    case = how["case"]
    lengths = {"one response": [4], "no rows": [0, 0], "no responses": []}.get(case, [3, 0, 4, 1, 3])
    n, b = sum(lengths), len(lengths)

    def around(width: float, size: int = n) -> Tensor:
        return (torch.rand(size, generator=g, dtype=torch.float64) * 2 - 1) * width

    logp, entropy = -0.2 - around(3.0).abs(), around(2.0).abs()
    old = logp + around(0.6)
    if case == "far":
        old[0], old[4], old[9] = logp[0] + 23, logp[4] - 24, logp[9] - 2
    rows: dict[str, Any] = {"mask": torch.rand(n, generator=g) > 0.2}
    if case == "nothing counts":
        rows["mask"] = torch.zeros(n, dtype=torch.bool)
    scale = 0.0 if case == "no advantage" else 1.5
    rows |= {"token_advantages": around(scale)} if how["advantages"] == "token" else {"advantages": around(scale, b)}
    if how["phi"] == "any sign":
        rows["phi"] = around(2.0, b)
    if how["old"] == "given":
        rows["old_logp"] = old
    if how["reference"] == "given":
        rows["ref_logp"] = logp + around(1.5)
        if case == "far":
            rows["ref_logp"][2], rows["ref_logp"][5] = logp[2] + 3.4, logp[5] - 23
    if how["importance"] == "token given":
        rows["token_importance_ratio"] = around(1.0).abs() * (around(1.0) > -0.6)
    elif how["importance"] == "response given":
        rows["importance_ratio"] = around(1.0, b).abs() * (around(1.0, b) > -0.6)
    elif how["importance"] == "sampled":
        rows["sampling_logp"] = old + around(0.5)
        rows["sampling_logp"][1:2] = torch.nan
    if how.get("threshold") == "given":
        rows["entropy_threshold"] = 0.8
    if how["denominator"] != "none":
        rows["denominator"] = 3.5 if how["denominator"] == "number" else torch.tensor(9)
    off = ~rows["mask"]
    for name in ("token_advantages", "old_logp", "ref_logp", "sampling_logp", "token_importance_ratio"):
        if name in rows:  # rows that do not count may hold anything
            rows[name] = torch.where(off, torch.nan, rows[name])
    return logp, entropy, [sum(lengths[:k]) for k in range(b + 1)], rows
