"""AdamW: of which parameters, in which groups, where it runs, and its schedule."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from univg_fast import distributed
from univg_fast.config import OptimConfig

GROUP_ELEMENTS = 500_000_000  # parameters of one optimizer group


def make_optimizer(
    groups: list[dict[str, Any]], optim: OptimConfig, config: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """AdamW: torch's fused one; DeepSpeed's for the CPU where the optimizer is offloaded, unless the config says no."""
    how: dict[str, Any] = {"lr": optim.learning_rate, "eps": optim.adam_epsilon}
    how["betas"] = (optim.adam_beta1, optim.adam_beta2)
    if not offload_device(config) or not config.get("zero_force_ds_cpu_optimizer", True):
        return torch.optim.AdamW(groups, fused=True, **how)
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    try:
        if distributed.is_main():
            print(
                "optimizer: DeepSpeedCPUAdam, compiled at its first use (minutes). If that does not end, a build was "
                f"killed and left {_build_lock()}, which all wait for: stop this run, delete it and start again",
                flush=True,
            )
        return DeepSpeedCPUAdam(groups, adamw_mode=True, **how)
    except (RuntimeError, OSError, ImportError) as error:  # it is compiled at its first use
        raise ValueError(
            "deepspeed.config: zero_optimization.offload_optimizer wants DeepSpeedCPUAdam, which could not be built "
            f"({str(error).strip().splitlines()[-1][:200]}); expected a C++ compiler and ninja, or "
            "deepspeed.config.zero_force_ds_cpu_optimizer=false, which takes torch's AdamW"
        ) from error


def _build_lock() -> str:
    """The file that is there while the optimizer is compiled. Who finds it waits without limit."""
    from torch.utils.cpp_extension import _get_build_directory  # late: it looks for compilers

    return os.path.join(_get_build_directory("cpu_adam", verbose=False), "lock")


def offload_device(config: Mapping[str, Any]) -> str | None:
    """Where a DeepSpeed config offloads the optimizer to; None: it stays with the model."""
    device = (config.get("zero_optimization", {}).get("offload_optimizer") or {}).get("device", "none")
    return None if device == "none" else str(device)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups of the trainable parameters: weight decay on matrices only, in groups of bounded size.

    Bounded, because ZeRO flattens and casts one group at a time: a step's peak is that of its largest group.
    """
    groups: list[dict[str, Any]] = []
    for is_matrix in (True, False):
        room = 0
        for parameter in module.parameters():
            if not parameter.requires_grad or (len(shape_of(parameter)) >= 2) != is_matrix:
                continue
            if room <= 0:
                groups.append({"params": [], "weight_decay": weight_decay if is_matrix else 0.0})
                room = GROUP_ELEMENTS
            groups[-1]["params"].append(parameter)
            room -= elements(parameter)
    return groups


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """The whole parameter's, also where ZeRO 3 holds it in pieces and the tensor itself is empty."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def elements(parameter: nn.Parameter) -> int:
    return math.prod(shape_of(parameter))


def learning_rate_factor(optim: OptimConfig, total_steps: int) -> Any:
    """step -> factor of the peak rate, under transformers' names.

    The warm-up begins at 1/warmup, where transformers' begins at 0: that step would be wasted.
    """
    least = optim.min_lr_rate if optim.lr_scheduler_type == "cosine_with_min_lr" else 0.0
    warmup = math.ceil(optim.warmup_ratio * total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        if optim.lr_scheduler_type in ("cosine", "cosine_with_min_lr"):
            return least + (1.0 - least) * 0.5 * (1.0 + math.cos(math.pi * progress))
        return 1.0 - progress if optim.lr_scheduler_type == "linear" else 1.0

    return factor
