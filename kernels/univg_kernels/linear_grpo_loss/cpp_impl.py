"""C++ face of `linear_grpo_loss`: torch's products around the C++ row heads."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library
from .._autograd import scale_on_host
from .._linear_forward import Statistics
from .._linear_head import Head, LinearPolicy, Rows
from .._linear_losses import linear_policy_loss
from .._linear_sweeps import offsets_within, skipping_on_host
from .._program import row_program
from .._row_terms import segment_ids
from .._rows import GrpoOutput, PolicyRows, coupling, math_dtype
from .._softmax import softmax_spec
from ..config import GrpoConfig
from ..grpo_loss.cpp_impl import grpo_head_
from ..linear_logprob.cpp_impl import forward_on_host
from ..metrics import METRICS, combine_metrics
from ..policy_loss.cpp_impl import policy_rows, row_inputs

_library.load()
ops = torch.ops.univg_kernels


class _Kernels:
    """PolicyKernels of _linear_losses."""

    def __init__(self, hidden: Tensor, token_ids: Tensor, rows: PolicyRows, config: GrpoConfig):
        n, dtype = hidden.shape[0], math_dtype(hidden)
        self.rows, self.config, self.ids = rows, config, token_ids
        self.softmax, self.program = softmax_spec(config)._replace(vocab_size=None), row_program(rows, config)
        # Where `mask` is False they stay 0.
        self.logp, self.entropy, self.a, self.b = (hidden.new_zeros(n, dtype=dtype) for _ in range(4))
        self.lse = hidden.new_zeros(n, dtype=torch.float64)
        self.coupled = coupling(rows, config)
        # What follows from the entropy of all rows can only be made when they all have one.
        self.inputs = None if self.coupled == "batch" else row_inputs(rows, config, n, dtype)
        self.loss, self.metrics = (
            hidden.new_zeros((), dtype=dtype),
            [hidden.new_zeros(len(METRICS), dtype=torch.float32)],
        )

    def keep(self, statistics: Statistics, part: Rows) -> None:
        self.logp[part], self.entropy[part], self.lse[part] = statistics

    def logprob(self, z: Tensor, part: Rows) -> Statistics:
        mask = None if self.rows.mask is None else self.rows.mask[part]
        return ops.logprob(z, self.ids[part], *self.softmax[:2], mask)

    def policy(self, part: Rows) -> None:
        n = self.logp.numel()
        inputs = self.inputs or row_inputs(self.rows, self.config, n, self.logp.dtype, self.entropy)
        offsets = offsets_within(self.rows.cu_seqlens, part)
        out = policy_rows(self.logp[part], self.entropy[part], offsets, inputs.part(part), self.program)
        self._add(*out[:2])
        self.a[part], self.b[part] = out[2:]

    def foresee(self) -> tuple[Tensor | None, Tensor | None]:
        inputs = self.inputs
        # torch.compile cannot follow shapes that depend on values.
        if inputs is None or torch.compiler.is_compiling():
            return None, None
        counts = inputs.weight != 0
        moves = counts & (inputs.advantage != 0) & (inputs.phi != 0)
        if self.rows.ref_logp is not None:
            moves |= counts
        if inputs.entropy_weight is not None:
            moves |= inputs.entropy_weight != 0
        if self.coupled == "response":
            response = segment_ids(self.rows.cu_seqlens, self.logp.numel())
            number = torch.zeros_like(self.rows.cu_seqlens).index_add_(
                0, response, moves.to(self.rows.cu_seqlens.dtype)
            )
            moves = counts & (number[response] != 0)
        others = ~moves if self.rows.mask is None else ~moves & self.rows.mask
        quiet = others.nonzero()[:, 0] if others.any() else None
        return None if moves.all() else moves.nonzero()[:, 0], quiet

    def _add(self, loss: Tensor, metrics: Tensor) -> None:
        self.loss.add_(loss)
        self.metrics.append(metrics)

    def backward_(self, z: Tensor, part: Rows) -> None:
        saved = (t[part] for t in (self.ids, self.lse, self.entropy, self.a, self.b))
        ops.logprob_backward_(z, *saved, *self.softmax[:2])

    def at_once_(self, z: Tensor, part: Rows) -> Tensor:
        assert self.inputs is not None  # rows do not depend on each other
        inputs = self.inputs.part(part)
        loss, metrics, self.logp[part], active = grpo_head_(z, self.ids[part], inputs, self.program, self.softmax)
        self._add(loss, metrics)
        return active

    def outcome(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.loss, combine_metrics(*self.metrics), self.logp


def linear_grpo_loss(policy: LinearPolicy, rows: PolicyRows, config: GrpoConfig) -> GrpoOutput:
    ids, softmax = policy.token_ids.long(), softmax_spec(config)

    def forward(head: Head, part: Rows) -> Statistics:
        mask = None if rows.mask is None else rows.mask[part]
        return forward_on_host(head.of(part), ids[part], softmax.scale, softmax.cap, mask)

    def kernels(rows: PolicyRows) -> _Kernels:
        return _Kernels(policy.hidden.detach(), ids, rows, config)

    return linear_policy_loss(policy, rows, config, forward, kernels, skipping_on_host(), scale_on_host)
