"""CUDA C++ face of `grpo_loss`: a cluster of CTAs (Hopper) holds a row on chip, from its only read to its gradient.

For rows that do not depend on each other; other calls belong to the Triton face.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._autograd import attach_gradients, needs_grad
from .._program import row_program
from .._row_terms import response_factors
from .._rows import GrpoOutput, PolicyRows, coupling
from .._softmax import separate_rows, softmax_spec
from .._triton.scale import scale_on_device
from ..config import GrpoConfig
from ..group_advantage.triton_impl import group_advantage
from ..policy_loss.cpp_impl import RowInputs, row_inputs
from .cpp_impl import grpo_head, grpo_head_

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CLUSTER = 8  # CTAs at most; kMostRanks in csrc/cuda/row_slices.h
SHARED_BESIDES = 1024  # bytes of a CTA's shared memory that no column gets, at most


def grpo_loss(logits: Tensor, token_ids: Tensor, rows: PolicyRows, config: GrpoConfig, inplace: bool) -> GrpoOutput:
    _check(logits, rows, config)
    (wanted,) = needs_grad(logits)
    program, softmax = row_program(rows, config), softmax_spec(config)
    with torch.no_grad():
        z, ids = separate_rows(logits.detach()), token_ids.long().contiguous()
        inputs = _row_inputs(rows, config, z.shape[0])
        # torch.compile has its own ways of saving memory, and no addresses.
        if inplace and wanted and not torch.compiler.is_compiling() and z.data_ptr() == logits.data_ptr():
            # .data: the overwriting is not for the op to count, attach_gradients does.
            loss, metrics, logp, _ = grpo_head_(logits.data, ids, inputs, program, softmax)
            gradient = logits.detach()
        else:
            loss, metrics, logp, _, gradient = grpo_head(z, ids, inputs, program, softmax, wanted)
            if wanted and softmax.vocab_size is not None:
                gradient = F.pad(gradient, (0, z.shape[1] - softmax.vocab_size))
    if wanted:
        loss = attach_gradients("grpo_loss", loss, [logits], [gradient], scale_on_device)
    return GrpoOutput(loss, metrics, logp)


def _check(logits: Tensor, rows: PolicyRows, config: GrpoConfig) -> None:
    if logits.dtype not in DTYPES:
        raise ValueError(
            f"grpo_loss: logits must be float32, bfloat16 or float16 for backend 'cuda', got {logits.dtype}; "
            "use backend='reference'"
        )
    columns, longest = config.vocab_size or logits.shape[1], _most_columns(logits)
    if columns > longest:
        raise ValueError(
            f"grpo_loss: logits must have at most {longest} columns for backend 'cuda' (what {CLUSTER} CTAs can hold "
            f"on chip), got {columns}; use backend='triton'"
        )
    coupled = coupling(rows, config)
    if coupled != "row":
        raise ValueError(
            f"grpo_loss: backend 'cuda' needs rows that do not depend on each other, got settings in which a row "
            f"depends on its {coupled} (loss_type={config.loss_type!r}, "
            f"importance_sampling_level={config.importance_sampling_level!r}, …); use backend='triton'"
        )


def _most_columns(logits: Tensor) -> float:
    if not logits.is_cuda:
        return float("inf")
    device = torch.cuda.get_device_properties(logits.device)
    held = getattr(device, "shared_memory_per_block_optin", device.shared_memory_per_block)
    return CLUSTER * (held - SHARED_BESIDES) // logits.element_size()


def _row_inputs(rows: PolicyRows, config: GrpoConfig, num_rows: int) -> RowInputs:
    """As the C++ face has them; group statistics from the Triton face, which adds up in a fixed order."""
    advantages, phi = response_factors(rows, config, torch.float32, group_advantage)
    made = rows._replace(rewards=None, accuracy=None, cu_groups=None, advantages=advantages, phi=phi)
    return row_inputs(made, config, num_rows, torch.float32)
