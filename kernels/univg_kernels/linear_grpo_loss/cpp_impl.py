"""C++ face of `linear_grpo_loss`: torch's products around the C++ row heads."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library
from .._autograd import scale_on_host
from .._linear_head import LinearPolicy
from .._linear_losses import linear_policy_loss
from .._linear_sweeps import skipping_on_host
from .._program import row_program
from .._rows import GrpoOutput, PolicyRows, coupling, math_dtype
from .._softmax import softmax_spec
from ..config import GrpoConfig
from ..grpo_loss.cpp_impl import grpo_head_
from ..metrics import METRICS, combine_metrics
from ..policy_loss.cpp_impl import policy_rows, row_inputs

_library.load()
ops = torch.ops.univg_kernels


class _Kernels:
    """PolicyKernels of _linear_losses."""

    def __init__(self, hidden: Tensor, token_ids: Tensor, rows: PolicyRows, config: GrpoConfig):
        n, dtype = hidden.shape[0], math_dtype(hidden)
        self.rows, self.config, self.ids = rows, config, token_ids.long()
        self.softmax, self.program = softmax_spec(config)._replace(vocab_size=None), row_program(rows, config)
        self.logp, self.entropy, self.a, self.b = (hidden.new_empty(n, dtype=dtype) for _ in range(4))
        self.lse = hidden.new_empty(n, dtype=torch.float64)
        # What follows from the entropy of all rows can only be made when they all have one.
        self.inputs = None if coupling(rows, config) == "batch" else row_inputs(rows, config, n, dtype)
        self.loss, self.metrics = (
            hidden.new_zeros((), dtype=dtype),
            [hidden.new_zeros(len(METRICS), dtype=torch.float32)],
        )

    def reference(self, z: Tensor, start: int, stop: int) -> None:
        assert self.rows.ref_logp is not None
        part = slice(start, stop)
        self.rows.ref_logp[part] = ops.logprob(z, self.ids[part], *self.softmax[:2], self._mask(part))[0]

    def _mask(self, part: slice) -> Tensor | None:
        return None if self.rows.mask is None else self.rows.mask[part]

    def logprob(self, z: Tensor, start: int, stop: int) -> None:
        part = slice(start, stop)
        out = ops.logprob(z, self.ids[part], *self.softmax[:2], self._mask(part))
        self.logp[part], self.entropy[part], self.lse[part] = out

    def policy(self, start: int, stop: int) -> None:
        part, n = slice(start, stop), self.logp.numel()
        inputs = self.inputs or row_inputs(self.rows, self.config, n, self.logp.dtype, self.entropy)
        offsets = self.rows.cu_seqlens
        if (start, stop) != (0, n):
            offsets = offsets[(offsets >= start) & (offsets <= stop)] - start
        out = policy_rows(self.logp[part], self.entropy[part], offsets, inputs.part(start, stop), self.program)
        self._add(*out[:2])
        self.a[part], self.b[part] = out[2:]

    def _add(self, loss: Tensor, metrics: Tensor) -> None:
        self.loss.add_(loss)
        self.metrics.append(metrics)

    def backward_(self, z: Tensor, rows: slice | Tensor) -> None:
        saved = (t[rows] for t in (self.ids, self.lse, self.entropy, self.a, self.b))
        ops.logprob_backward_(z, *saved, *self.softmax[:2])

    def at_once_(self, z: Tensor, start: int, stop: int) -> Tensor:
        assert self.inputs is not None  # rows do not depend on each other
        part = slice(start, stop)
        inputs = self.inputs.part(start, stop)
        loss, metrics, self.logp[part], active = grpo_head_(z, self.ids[part], inputs, self.program, self.softmax)
        self._add(loss, metrics)
        return active

    def outcome(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.loss, combine_metrics(*self.metrics), self.logp


def linear_grpo_loss(policy: LinearPolicy, rows: PolicyRows, config: GrpoConfig) -> GrpoOutput:
    def kernels(rows: PolicyRows) -> _Kernels:
        return _Kernels(policy.hidden.detach(), policy.token_ids, rows, config)

    return linear_policy_loss(policy, rows, config, kernels, skipping_on_host(), scale_on_host)
