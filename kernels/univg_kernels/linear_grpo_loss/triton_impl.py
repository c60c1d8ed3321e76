"""Triton face of `linear_grpo_loss`: torch's products around the row kernels of `grpo_loss`."""

from __future__ import annotations

import torch
from torch import Tensor

from .._linear_forward import Statistics
from .._linear_head import Head, LinearPolicy, Rows
from .._linear_losses import linear_policy_loss
from .._rows import GrpoOutput, PolicyRows, coupling
from .._softmax import softmax_spec
from .._triton.compact import skipping_on_device
from .._triton.launch import check_dtype
from .._triton.partials import empty_partials, reduce_partials
from .._triton.rows import row_arguments
from .._triton.scale import scale_on_device
from ..config import GrpoConfig
from ..grpo_loss.triton_impl import triton_grpo_rows_
from ..linear_logprob.triton_impl import forward_on_device
from ..policy_loss.triton_impl import triton_policy_rows
from ..selective_logprob.triton_impl import triton_logprob, triton_logprob_backward_


class _Kernels:
    """PolicyKernels of _linear_losses."""

    def __init__(self, hidden: Tensor, token_ids: Tensor, rows: PolicyRows, config: GrpoConfig):
        n = hidden.shape[0]
        self.rows, self.config, self.ids = rows, config, token_ids
        self.scale, self.cap, _ = softmax_spec(config)
        self.logp, self.entropy = (hidden.new_empty(n, dtype=torch.float32) for _ in range(2))
        self.log2_sum = hidden.new_empty(n, dtype=torch.float64)
        self.a, self.b = (hidden.new_zeros(n, dtype=torch.float32) for _ in range(2))
        self.coefficients = hidden.new_empty(2, n, dtype=torch.float32)  # a and b where they are made at once
        self.partials = empty_partials(n, hidden)
        # What follows from the entropy of all rows can only be made when they all have one.
        self.settings = None if coupling(rows, config) == "batch" else row_arguments(rows, config, n)

    def keep(self, statistics: Statistics, part: Rows) -> None:
        self.logp[part], self.entropy[part], self.log2_sum[part] = statistics

    def logprob(self, z: Tensor, part: Rows) -> Statistics:
        mask = None if self.rows.mask is None else self.rows.mask[part]
        return triton_logprob(z, self.ids[part], self.scale, self.cap, None, mask)

    def foresee(self) -> tuple[Tensor | None, Tensor | None]:
        return None, None  # what the advantages are, only the device knows

    def policy(self, part: Rows) -> None:
        assert isinstance(part, slice)  # foresee
        n = self.logp.numel()
        settings = self.settings or row_arguments(self.rows, self.config, n, self.entropy)
        first, end = 0, self.rows.cu_seqlens.numel() - 1
        if (part.start, part.stop) != (0, n):
            assert self.rows.host_seqlens is not None  # plan_chunks
            bounds = torch.tensor([part.start, part.stop])
            first, end = (torch.searchsorted(self.rows.host_seqlens, bounds, right=True) - 1).tolist()
        triton_policy_rows(
            self.logp, self.entropy, self.a, self._bonus(), self.partials, first, end - first, *settings
        )  # fmt: skip

    def _bonus(self) -> Tensor | None:
        return self.b if self.config.entropy_coef else None

    def backward_(self, z: Tensor, part: Rows) -> None:
        b = self._bonus()
        saved = (self.ids[part], self.log2_sum[part], self.entropy[part], self.a[part], None if b is None else b[part])
        triton_logprob_backward_(z, *saved, self.scale, self.cap)

    def at_once_(self, z: Tensor, part: Rows) -> Tensor:
        assert self.settings is not None and isinstance(part, slice)  # rows do not depend on each other; foresee
        outputs = (self.logp, self.coefficients, self.partials)
        triton_grpo_rows_(z, self.ids, *outputs, part.start, self.scale, self.cap, *self.settings)
        return (self.coefficients[:, part] != 0).any(0)

    def outcome(self) -> tuple[Tensor, Tensor, Tensor]:
        return *reduce_partials(self.partials), self.logp


def linear_grpo_loss(policy: LinearPolicy, rows: PolicyRows, config: GrpoConfig) -> GrpoOutput:
    check_dtype("linear_grpo_loss", policy.hidden)

    ids, softmax = policy.token_ids.contiguous(), softmax_spec(config)

    def forward(head: Head, part: Rows) -> Statistics:
        mask = None if rows.mask is None else rows.mask[part]
        return forward_on_device(head.of(part), ids[part], softmax.scale, softmax.cap, mask)

    def kernels(rows: PolicyRows) -> _Kernels:
        return _Kernels(policy.hidden.detach(), ids, rows, config)

    # With a KL term and no mask, next to no row is without a gradient: the plain products are the faster ones then.
    with_kl = policy.reference is not None or rows.ref_logp is not None
    skipping = None if with_kl and rows.mask is None else skipping_on_device(policy.hidden)
    return linear_policy_loss(policy, rows, config, forward, kernels, skipping, scale_on_device)
