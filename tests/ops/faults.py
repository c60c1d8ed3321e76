"""Faulty arguments of every op, each with its message. Checked by test_errors.py."""

from __future__ import annotations

from typing import Any

import torch
import univg_kernels as uk
from torch import Tensor

N, V, H, B = 6, 10, 4, 3
LOSSES = ("grpo_loss", "linear_grpo_loss", "policy_loss")
FROM_LOGITS = ("grpo_loss", "selective_logprob")
FROM_HIDDEN = ("linear_grpo_loss", "linear_logprob", "linear_ce")
LOGPROBS = ("selective_logprob", "linear_logprob", "linear_ce")


def ones(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.ones(*shape, dtype=dtype, device=device)


def good(op: str) -> dict[str, Any]:
    """Arguments without a fault; what a test changes is the only one."""
    if op == "group_advantage":
        return dict(rewards=ones(B), cu_groups=torch.tensor([0, B]), accuracy=ones(B))
    if op == "difficulty_weight":
        return dict(miou=ones(2))
    if op == "box_iou":
        return dict(boxes1=ones(2, 4), boxes2=ones(2, 4))
    if op == "matched_iou":
        numbers = torch.tensor([0, 2])
        return dict(
            boxes1=ones(2, 4), boxes2=ones(2, 4), offsets1=numbers, offsets2=numbers, images1=numbers, images2=numbers
        )
    arguments: dict[str, Any] = dict(logp=ones(N), entropy=ones(N))
    if op != "policy_loss":
        arguments = dict(logits=ones(N, V)) if op in FROM_LOGITS else dict(hidden=ones(N, H), weight=ones(V, H))
        arguments["token_ids"] = ones(N, dtype=torch.int64)
    if op in LOSSES:
        arguments |= dict(cu_seqlens=torch.tensor([0, 2, 4, 6]), advantages=ones(B))
    if op == "linear_ce":
        arguments["row_weight"] = ones(N)
    return arguments


Fault = tuple[tuple[str, ...], dict[str, Any], str]  # ops, what is changed, the message after "op: "
SHAPES: list[Fault] = [
    (FROM_LOGITS, dict(logits=ones(2, 3, V)), r"logits must be of shape \[any, any\], got \[2, 3, 10\]; flatten"),
    (FROM_LOGITS, dict(logits=ones(N, 0)), r"logits must have at least one column, got \[6, 0\]"),
    (FROM_LOGITS, dict(logits=[[0.0]]), "logits must be a tensor, got list; flatten"),
    (
        FROM_HIDDEN,
        dict(hidden=ones(1, N, H)),
        r"hidden must be of shape \[any, any\], got \[1, 6, 4\]; pick the scored",
    ),
    (
        FROM_HIDDEN,
        dict(weight=ones(V, H + 1)),
        r"weight must be of shape \[any, 4\], got \[10, 5\]; weight is \[V, H\]",
    ),
    (FROM_HIDDEN, dict(weight=ones(0, H)), "weight must have at least one row, got .*GatheredParameters"),
    (FROM_HIDDEN, dict(bias=ones(H)), r"bias must be of shape \[10\], got \[4\]"),
    (
        (*FROM_LOGITS, *FROM_HIDDEN),
        dict(token_ids=ones(5, dtype=torch.int64)),
        r"token_ids must be of .* got \[5\]; one",
    ),
    (("linear_ce",), dict(row_weight=ones(N, 1)), r"row_weight must be of shape \[6\], got \[6, 1\]"),
    (("policy_loss",), dict(logp=ones(2, 3)), r"logp must be of shape \[any\], got \[2, 3\]"),
    (("policy_loss",), dict(entropy=ones(5)), r"entropy must be of shape \[6\], got \[5\]"),
    (LOSSES, dict(advantages=ones(N)), r"advantages must be of shape \[3\], got \[6\]; one value per response"),
    (LOSSES, dict(phi=ones(N)), r"phi must be of shape \[3\], got \[6\]; one value per response"),
    (
        LOSSES,
        dict(importance_ratio=ones(B, 1)),
        r"importance_ratio must be of shape \[3\], got \[3, 1\]; one value per r",
    ),
    (
        LOSSES,
        dict(token_importance_ratio=ones(B)),
        r"token_importance_ratio must be of shape \[6\], got \[3\]; one value",
    ),
    (LOSSES, dict(advantages=None, token_advantages=ones(B)), r"token_advantages must be of shape \[6\], got \[3\]"),
    (LOSSES, dict(old_logp=ones(B)), r"old_logp must be of shape \[6\], got \[3\]; one value per row"),
    (LOSSES, dict(ref_logp=ones(N, 1)), r"ref_logp must be of shape \[6\], got \[6, 1\]; one value per row"),
    (LOSSES, dict(sampling_logp=ones(0)), r"sampling_logp must be of shape \[6\], got \[0\]; one value per row"),
    (LOSSES, dict(mask=ones(5, dtype=torch.bool)), r"mask must be of shape \[6\], got \[5\]"),
    (LOSSES, dict(denominator=ones(1)), r"denominator must be of shape \[\], got \[1\]"),
    (LOSSES, dict(entropy_threshold=ones(1)), r"entropy_threshold must be of shape \[\], got \[1\]"),
    (("group_advantage",), dict(rewards=ones(B, 1)), r"rewards must be of shape \[any\], got \[3, 1\]"),
    (
        ("group_advantage",),
        dict(accuracy=ones(2)),
        r"accuracy must be of shape \[3\], got \[2\]; one value per response",
    ),
    (("difficulty_weight",), dict(miou=torch.tensor(0.5)), r"miou must be of shape \[any\], got \[\]"),
    (("box_iou",), dict(boxes1=ones(4)), r"boxes1 must be of shape \[any, 4\], got \[4\]"),
    (("box_iou",), dict(boxes2=ones(3, 4)), r"boxes2 must be of shape \[2, 4\], got \[3, 4\]"),
    (("box_iou",), dict(boxes2=ones(3, 5), mode="pairwise"), r"boxes2 must be of shape \[any, 4\], got \[3, 5\]"),
]
DTYPES: list[Fault] = [
    (FROM_LOGITS, dict(logits=ones(N, V, dtype=torch.int64)), "logits must be float64 or .*, got int64"),
    (FROM_LOGITS, dict(logits=ones(N, V, dtype=torch.complex64)), "logits must be float64 or .*, got complex64"),
    (
        FROM_HIDDEN,
        dict(weight=ones(V, H, dtype=torch.bfloat16)),
        "weight must be float32, got bfloat16; .* hidden's dtype",
    ),
    (
        FROM_HIDDEN,
        dict(bias=ones(V, dtype=torch.float64)),
        r"bias must be float32, got float64; convert with bias.to\(",
    ),
    ((*FROM_LOGITS, *FROM_HIDDEN), dict(token_ids=ones(N)), "token_ids must be int64 or int32, got float32"),
    (
        ("linear_ce",),
        dict(row_weight=ones(N, dtype=torch.bfloat16)),
        "row_weight must be float32 or float64, got bfloat16",
    ),
    (("linear_ce",), dict(row_weight=True), "row_weight must be a tensor, got bool"),
    (("policy_loss",), dict(logp=ones(N, dtype=torch.int64)), "logp must be float64 or .*, got int64"),
    (LOSSES, dict(cu_seqlens=ones(4)), "cu_seqlens must be int64 or int32, got float32"),
    (LOSSES, dict(ref_logp=ones(N, dtype=torch.int64)), "ref_logp must be float64 or .*, got int64"),
    (LOSSES, dict(advantages=ones(B, dtype=torch.int64)), "advantages must be float64 or .*, got int64"),
    (LOSSES, dict(mask=ones(N)), r"mask must be bool, got float32; convert with mask.to\("),
    (LOSSES, dict(denominator=torch.tensor(True)), "denominator must be float64 or .*, got bool"),
    (("group_advantage",), dict(rewards=ones(B, dtype=torch.int64)), "rewards must be float64 or .*, got int64"),
    (("difficulty_weight",), dict(miou=ones(2, dtype=torch.bool)), "miou must be float64 or .*, got bool"),
    (("box_iou",), dict(boxes1=ones(2, 4, dtype=torch.bool)), "boxes1 must be float64 or .*, got bool"),
]
DEVICES: list[Fault] = [
    (
        (*FROM_LOGITS, *FROM_HIDDEN),
        dict(token_ids=ones(N, dtype=torch.int64, device="meta")),
        "token_ids must be on cpu",
    ),
    (FROM_HIDDEN, dict(weight=ones(V, H, device="meta")), "weight must be on cpu .*, got meta; move it with weight.to"),
    (FROM_HIDDEN, dict(bias=ones(V, device="meta")), "bias must be on cpu .*, got meta; move it with bias.to"),
    (LOSSES, dict(mask=ones(N, dtype=torch.bool, device="meta")), "mask must be on cpu .*, got meta; move"),
    (LOSSES, dict(advantages=ones(B, device="meta")), "advantages must be on cpu .*, got meta; move"),
    (LOSSES, dict(old_logp=ones(N, device="meta")), "old_logp must be on cpu .*, got meta; move"),
    (LOSSES, dict(cu_seqlens=ones(4, dtype=torch.int64, device="meta")), "cu_seqlens must be on cpu .*, got meta"),
    (LOSSES, dict(denominator=torch.tensor(1.0, device="meta")), "denominator must be on cpu .*, got meta"),
    (("group_advantage",), dict(accuracy=ones(B, device="meta")), "accuracy must be on cpu .*, got meta"),
    (("box_iou",), dict(boxes2=ones(2, 4, device="meta")), "boxes2 must be on cpu .*, got meta"),
]
VALUES: list[Fault] = [
    (
        (*FROM_LOGITS, *FROM_HIDDEN),
        dict(token_ids=torch.tensor([0, 1, 2, 3, 4, 10])),
        r"token_ids must be in \[0, 10\), g",
    ),
    (
        (*FROM_LOGITS, *FROM_HIDDEN),
        dict(token_ids=torch.tensor([0, 1, 2, -100, 4, 5])),
        "token_ids .* -100 to 5; .*mask",
    ),
    (LOGPROBS, dict(vocab_size=11), r"vocab_size must be at most 10 \(the columns there are\), got 11"),
    (LOGPROBS, dict(vocab_size=0), "vocab_size must be a whole number >= 1 or None, got 0"),
    (LOGPROBS, dict(vocab_size=2.0), "vocab_size must be a whole number >= 1 or None, got 2.0"),
    (LOGPROBS, dict(vocab_size=1, token_ids=torch.tensor([0, 0, 0, 0, 1, 0])), r"token_ids must be in \[0, 1\)"),
    (
        ("grpo_loss", "linear_grpo_loss"),
        dict(config=uk.GrpoConfig(vocab_size=11)),
        "vocab_size must be at most 10 .*11",
    ),
    (LOGPROBS, dict(softcap=0.0), "softcap must be a finite number > 0, got 0.0"),
    (LOGPROBS, dict(logit_scale=float("inf")), "logit_scale must be a finite number > 0, got inf"),
    (("linear_ce",), dict(row_weight=float("nan")), "row_weight must be a finite number, or a tensor .*, got nan"),
    (LOGPROBS[:2], dict(temperature=-1.0), "temperature must be a finite number > 0, got -1.0"),
    (
        LOSSES,
        dict(cu_seqlens=torch.tensor([0, 2, 4, 5])),
        r"cu_seqlens must end at 6 \(the number of rows N\), got 5; b",
    ),
    (LOSSES, dict(cu_seqlens=torch.tensor([0, 4, 2, 6])), "cu_seqlens must begin with 0 and never fall, got"),
    (LOSSES, dict(cu_seqlens=torch.tensor([1, 2, 4, 6])), "cu_seqlens must begin with 0"),
    (
        LOSSES,
        dict(cu_seqlens=torch.tensor([], dtype=torch.int64)),
        "cu_seqlens must hold at least one offset, got none",
    ),
    (LOSSES, dict(denominator=0), "denominator must be a finite number > 0, got 0"),
    (LOSSES, dict(denominator=float("nan")), "denominator must be a finite number > 0, got nan"),
    (LOSSES, dict(denominator=torch.tensor(-1)), "denominator must be a finite number >= 0, got -1"),
    (LOSSES, dict(denominator=10**400), "denominator must be a finite number > 0, got 10000"),
    (LOSSES, dict(denominator="6"), "denominator must be a finite number > 0, got '6'"),
    (LOSSES, dict(entropy_threshold=float("inf")), "entropy_threshold must be a finite number, got inf"),
    (("group_advantage",), dict(cu_groups=torch.tensor([0, 2])), "cu_groups must end at 3 .*responses B.*, got 2"),
    (("group_advantage",), dict(cu_groups=torch.tensor([0, 5, 3])), "cu_groups must begin with 0 and never fall"),
    (("difficulty_weight",), dict(kind="cubic"), "kind must be one of 'exp', .* got 'cubic'"),
    (("difficulty_weight",), dict(power=0.0), "power must be a finite number > 0, got 0.0"),
    (
        ("difficulty_weight",),
        dict(kind="log", normalize=True),
        "the difficulty 'log' cannot be normalised .*; use 'exp'",
    ),
    (("difficulty_weight",), dict(normalize=1), "normalize must be True or False, got 1"),
    (("grpo_loss",), dict(inplace=None), "inplace must be True or False, got None"),
    ((*LOSSES, "group_advantage"), dict(config={}), r"config must be a GrpoConfig or None, got dict; use GrpoConfig\("),
    (
        LOSSES,
        dict(advantages=ones(B).to_sparse()),
        r"advantages must be a dense tensor, .*; convert with advantages.to_d",
    ),
    (("box_iou",), dict(mode="all"), "mode must be one of 'aligned', .* got 'all'"),
    (
        ("box_iou",),
        dict(kind="giou", convention="univg_r1"),
        "kind 'giou' needs convention 'continuous', got 'univg_r1'",
    ),
]
GROUPS = torch.tensor([0, B])
TOGETHER: list[Fault] = [
    (LOSSES, dict(advantages=None), "give either rewards with cu_groups .* got neither"),
    (LOSSES, dict(rewards=ones(B), cu_groups=GROUPS), "give either rewards .* got rewards and advantages"),
    (LOSSES, dict(token_advantages=ones(N)), "give either rewards .* got advantages and token_advantages"),
    (LOSSES, dict(advantages=None, rewards=ones(B)), r"rewards need cu_groups \[K\+1\]"),
    (LOSSES, dict(advantages=None, rewards=ones(B), cu_groups=GROUPS, phi=ones(B)), "rewards need .*; drop phi"),
    (LOSSES, dict(advantages=None, rewards=ones(B), cu_groups=torch.tensor([0, 2])), "cu_groups must end at 3"),
    (LOSSES, dict(accuracy=ones(B)), "cu_groups and accuracy belong to rewards; with advantages give phi"),
    (LOSSES, dict(importance_ratio=ones(B), token_importance_ratio=ones(N)), "give one of importance_ratio, .*got imp"),
    (LOSSES, dict(importance_ratio=ones(B), sampling_logp=ones(N)), "give one .*importance_sampling_mode='none'"),
    (
        ("policy_loss",),
        dict(entropy=None, entropy_threshold=0.1),
        "entropy must be given .*; selective_logprob returns it",
    ),
    (
        ("policy_loss",),
        dict(entropy=None, config=uk.GrpoConfig(entropy_coef=0.1)),
        "entropy must be given for entropy_coef",
    ),
    (
        ("linear_grpo_loss",),
        dict(ref_logp=ones(N), ref_hidden=ones(N, H)),
        "give either ref_logp or ref_hidden, got both",
    ),
    (("linear_grpo_loss",), dict(ref_weight=ones(V, H)), "ref_weight and ref_bias need ref_hidden"),
    (
        ("linear_grpo_loss",),
        dict(ref_hidden=ones(5, H)),
        "ref_hidden and ref_weight must have the rows .*, got 5 and 10",
    ),
    (("linear_grpo_loss",), dict(ref_hidden=ones(N, 3)), r"ref_weight must be of shape \[any, 3\], got \[10, 4\]"),
    (FROM_HIDDEN[::2], dict(weight_grad=ones(V, H, dtype=torch.bfloat16)), "weight_grad must be float32, got bfloat16"),
    (FROM_HIDDEN[::2], dict(weight_grad=ones(H, V)), r"weight_grad must be of shape \[10, 4\], got \[4, 10\]"),
    (
        FROM_HIDDEN[::2],
        dict(weight_grad=ones(H, V).T),
        r"weight_grad must be a contiguous .*; make it with torch.zeros_like",
    ),
    (
        FROM_HIDDEN[::2],
        dict(weight_grad=ones(V, H).requires_grad_()),
        "weight_grad must be .* requires_grad=True; make it",
    ),
]
