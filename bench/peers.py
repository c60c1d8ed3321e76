"""The packages of others, each behind a function that gives back something callable or raises `Absent` with the reason.

None is a dependency: what is not installed, or cannot run on this device, is named in the table instead of timed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .device import Device
from .problem import Rows


class Absent(Exception):
    """Why a peer has no row."""


def load(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Absent(f"not installed ({package}): {error}") from error


def needs_cuda(device: Device, what: str) -> None:
    if device.kind != "cuda":
        raise Absent(f"{what} runs on CUDA only")


def liger_triton_loss(device: Device, loss_type: str, level: str) -> Callable[..., Tensor]:
    """(logits [B, L+1, V], Rows, eps_high) -> loss."""
    needs_cuda(device, "Liger's Triton loss")
    loss = load("liger_kernel.transformers.grpo_loss", "liger-kernel").triton_grpo_loss
    return lambda z, rows, eps_high: loss(
        z, rows.padded(rows.old_logp), None, rows.padded(rows.token_ids), rows.advantages,
        temperature=1.0, beta=0.0, eps_low=0.2, eps_high=eps_high, inplace=True, loss_type=loss_type,
        importance_sampling_level=level, reduce=True,
    )[0]  # fmt: skip


def liger_chunked_loss(rows: Rows) -> Callable[[Tensor, Tensor], Tensor]:
    """(hidden, weight) -> loss, `LigerFusedLinearGRPOLoss` as ms-swift runs it (compiled=False)."""
    module = load("liger_kernel.chunked_loss", "liger-kernel")
    loss = module.LigerFusedLinearGRPOLoss(
        beta=0.0, compiled=False, use_ref_model=False, loss_type="grpo", epsilon_low=0.2, epsilon_high=0.2
    )
    ids, old = rows.padded(rows.token_ids), rows.padded(rows.old_logp)
    mask = old.new_ones(old.shape)
    return lambda h, w: loss(rows.padded(h), w, ids, mask, rows.advantages, old_per_token_logps=old)[0]


def liger_scaled_ce() -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(hidden, weight, ids) -> (logp, entropy); the Hopper kernel where it runs, else Liger's own torch chunks."""
    module = load("liger_kernel.ops.fused_linear_scaled_cross_entropy", "liger-kernel")

    def scaled(h: Tensor, w: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        function = module.LigerFusedLinearScaledCrossEntropyFunction
        nll, entropy = function.apply(h, w, ids, 1.0, -100, 1, True)
        return -nll, entropy

    return scaled


def liger_linear_ce(device: Device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(hidden, weight, ids) -> mean cross entropy."""
    needs_cuda(device, "Liger's fused linear cross entropy")
    return load("liger_kernel.transformers.functional", "liger-kernel").liger_fused_linear_cross_entropy


TRL_CHUNK = 32768  # vocabulary entries of a tile, TRL's default


def trl_chunked(outputs: tuple[str, ...] = ()) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(hidden, weight, ids) -> (logp, entropy or None): the head of TRL's trainer."""
    function = load("trl.kernels.chunked_logprob", "trl").ChunkedLogProbFunction
    load("trl.trainer.utils", "trl with its dependencies")  # which the backward pass imports
    return lambda h, w, ids: function.apply(h, w, None, ids, 1.0, TRL_CHUNK, None, 1.0, outputs)[:2]


def trl_selective() -> Callable[[Tensor, Tensor], Tensor]:
    return load("trl.trainer.utils", "trl with its dependencies").selective_log_softmax


def trl_selective_entropy() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return load("trl.trainer.utils", "trl with its dependencies").selective_log_softmax_and_entropy


def apple_cce(device: Device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(hidden, weight, ids) -> cross entropy of each row; without a GPU its torch.compile implementation."""
    loss = load("cut_cross_entropy", "cut-cross-entropy").linear_cross_entropy
    impl = "cce" if device.kind == "cuda" else "torch_compile"
    return lambda h, w, ids: loss(h, w, ids, reduction="none", impl=impl)


def quack_linear_ce(device: Device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(hidden, weight, ids) -> mean cross entropy."""
    needs_cuda(device, "QuACK")
    loss = load("quack.linear_cross_entropy", "quack-kernels").chunked_linear_cross_entropy
    return lambda h, w, ids: loss(h, w, ids, reduction="mean")
