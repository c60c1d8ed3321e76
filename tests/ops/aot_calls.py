"""Calls of the Triton faces on small CPU tensors, for aot.recorded to record what they launch."""

from __future__ import annotations

from typing import Any

import torch
import univg_kernels as uk
from univg_kernels._rows import PolicyRows
from univg_kernels._softmax import SoftmaxSpec
from univg_kernels._triton.compact import triton_compact_
from univg_kernels.box_iou import triton_impl as box_face
from univg_kernels.group_advantage import triton_impl as group_face
from univg_kernels.grpo_loss import triton_impl as grpo_face
from univg_kernels.linear_ce import triton_impl as ce_face
from univg_kernels.policy_loss import triton_impl as policy_face
from univg_kernels.selective_logprob import triton_impl as logprob_face
from univg_kernels.shared_prefix_attention import triton_impl as attention_face

QWEN = 152064
N = 3  # rows; no constant of a kernel depends on it


def policy_rows(*, given: bool = False, **more: Any) -> PolicyRows:
    """Everything a row may have, made in the kernel; or given: advantages and phi, and nothing else."""
    ones, cu = torch.ones(2), torch.tensor([0, 1, N])
    if given:
        return PolicyRows(cu, advantages=ones, phi=ones, denominator=2.0)
    rows: dict[str, Any] = dict(rewards=ones, accuracy=ones, cu_groups=torch.tensor([0, 2]), denominator=2.0)
    rows |= dict(old_logp=torch.zeros(N), ref_logp=torch.zeros(N), mask=torch.ones(N, dtype=torch.bool))
    return PolicyRows(cu, **(rows | more))


def run_grpo(dtype: torch.dtype, vocab: int, given: bool = False, rows: Any = None, **settings: Any) -> None:
    logits = (torch.empty(N, vocab, dtype=dtype).requires_grad_()) * 1
    ids, rows = torch.zeros(N, dtype=torch.int64), rows or policy_rows(given=given)
    grpo_face.grpo_loss(logits, ids, rows, uk.GrpoConfig(**settings), True)


def run_policy(rows: PolicyRows, **settings: Any) -> None:
    policy_face.policy_loss(torch.zeros(N), torch.zeros(N), rows, uk.GrpoConfig(**settings))


def run_logprob(dtype: torch.dtype, vocab: int, softcap: float = 0.0, vocab_size: int | None = None) -> None:
    z, ids, v = torch.empty(N, vocab, dtype=dtype), torch.zeros(N, dtype=torch.int64), torch.zeros(N)
    head = (0.9, softcap, vocab_size)
    logprob_face.triton_logprob(z, ids, *head, v == 0)
    logprob_face.triton_logprob_backward_(z, ids, v.double(), v, v, v, *head)


def run_ce(dtype: torch.dtype, vocab: int, softcap: float = 0.0) -> None:
    hidden, weight = torch.zeros(N, 2, dtype=dtype, requires_grad=True), torch.zeros(vocab, 2, dtype=dtype)
    softmax = SoftmaxSpec(0.9, softcap, None)
    ce_face.linear_ce(hidden, weight, None, torch.zeros(N, dtype=torch.int64), torch.ones(N), softmax, None)


def run_box(mode: str, kind: str, convention: str) -> None:
    box_face.box_iou(torch.zeros(5, 4), torch.zeros(5, 4), None, mode, kind, convention)


def run_box_gradient(pairwise: bool) -> None:
    box_face.pair_gradients(torch.zeros(5, 5), torch.zeros(5, 4), torch.zeros(5, 4), pairwise, True, False)


def run_group(scale: str) -> None:
    config = uk.GrpoConfig(scale_rewards=scale, center_singletons=False)
    group_face.group_advantage(torch.ones(2), torch.tensor([0, 2]), torch.ones(2), config)


def run_compact() -> None:
    triton_compact_(torch.zeros(N, 640, dtype=torch.bfloat16), torch.arange(N), torch.ones(1, dtype=torch.int32))


def run_attention(dtype: torch.dtype, dim: int) -> None:
    layout = uk.shared_prefix([(100, [5, 60]), (3, [2])])
    query, key, value = (torch.zeros(170, n, dim, dtype=dtype, requires_grad=True) for n in (4, 2, 2))
    out = attention_face.shared_prefix_attention(query, key, value, layout, 0.1)
    torch.autograd.grad(out, (query, key, value), torch.zeros_like(out))
