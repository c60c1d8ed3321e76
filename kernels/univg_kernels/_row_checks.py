"""The row arguments of the policy losses at their doors: `check_rows`. N rows, B responses, K groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import FLOATS, LARGEST, check_offsets, check_tensor, is_number, values_at_hand
from ._rows import PolicyRows, RowArguments
from .config import GrpoConfig

_PER_RESPONSE = ("rewards", "accuracy", "advantages", "phi", "importance_ratio")
_PER_ROW = ("token_advantages", "old_logp", "ref_logp", "sampling_logp", "token_importance_ratio")


def check_rows(
    op: str, num_rows: int, device: torch.device, config: GrpoConfig, cu_seqlens: Tensor, given: dict[str, Any]
) -> PolicyRows:
    """Raise ValueError for what cannot be, TypeError for an unknown name; give back the arguments, detached."""
    unknown = sorted(given.keys() - RowArguments.__annotations__.keys())
    if unknown:
        raise TypeError(f"{op}: unknown argument {unknown[0]!r}; expected {', '.join(RowArguments.__annotations__)}")
    at = cu_seqlens.device if isinstance(cu_seqlens, Tensor) and cu_seqlens.is_cpu else device
    cu_seqlens = check_offsets(op, "cu_seqlens", cu_seqlens, num_rows, at, "rows N")
    b, sound = cu_seqlens.numel() - 1, []
    if not values_at_hand(cu_seqlens):
        cu_seqlens, ok = settle_offsets(op, "cu_seqlens", cu_seqlens, num_rows)
        sound.append(ok)
    host = cu_seqlens if cu_seqlens.is_cpu else None
    cu_seqlens = cu_seqlens.to(device, non_blocking=True)
    rows = PolicyRows(cu_seqlens, host_seqlens=host, **{k: _detached(v) for k, v in given.items()})
    _check_advantages(op, rows)
    for names, size, hint in ((_PER_RESPONSE, b, "one value per response"), (_PER_ROW, num_rows, "one value per row")):
        for name in names:
            value = getattr(rows, name)
            if value is not None:
                check_tensor(op, name, value, (size,), FLOATS, device, hint)
    if rows.cu_groups is not None:
        check_offsets(op, "cu_groups", rows.cu_groups, b, device, "responses B")
        if not values_at_hand(rows.cu_groups):
            groups, ok = settle_offsets(op, "cu_groups", rows.cu_groups, b)
            rows, sound = rows._replace(cu_groups=groups), [*sound, ok]
    if rows.mask is not None:
        check_tensor(op, "mask", rows.mask, (num_rows,), (torch.bool,), device)
    _check_scalar(op, "denominator", rows.denominator, device, 0.0)
    _check_scalar(op, "entropy_threshold", rows.entropy_threshold, device, -torch.inf)
    ratios = [n for n in ("importance_ratio", "token_importance_ratio") if getattr(rows, n) is not None]
    if len(ratios) == 2 or (ratios and rows.sampling_logp is not None and config.importance_sampling_mode != "none"):
        other = "token_importance_ratio" if len(ratios) == 2 else "sampling_logp"
        raise ValueError(
            f"{op}: give one of importance_ratio, token_importance_ratio and sampling_logp, got {ratios[0]} and "
            f"{other}; for sampling_logp in the off-policy mask only, set importance_sampling_mode='none'"
        )
    for ok in sound:
        worth = {k: getattr(rows, k) for k in ("rewards", "advantages", "token_advantages")}
        rows = rows._replace(**{k: torch.where(ok, v, torch.nan) for k, v in worth.items() if v is not None})
    rows = rows._replace(**{k: v.contiguous() for k, v in rows._asdict().items() if isinstance(v, Tensor)})
    return rows._replace(ref_logp=None) if config.beta == 0 else rows


def _check_advantages(op: str, rows: PolicyRows) -> None:
    given = [n for n in ("rewards", "advantages", "token_advantages") if getattr(rows, n) is not None]
    if len(given) != 1:
        raise ValueError(
            f"{op}: give either rewards with cu_groups [and accuracy], or advantages (or token_advantages) [and phi]; "
            f"got {' and '.join(given) if given else 'neither'}"
        )
    if rows.rewards is not None and (rows.cu_groups is None or rows.phi is not None):
        raise ValueError(f"{op}: rewards need cu_groups [K+1], and their phi follows from accuracy; drop phi")
    if rows.rewards is None and (rows.cu_groups is not None or rows.accuracy is not None):
        raise ValueError(f"{op}: cu_groups and accuracy belong to rewards; with {given[0]} give phi [B] instead")


def _check_scalar(op: str, name: str, value: Any, device: torch.device, low: float) -> None:
    zero = isinstance(value, Tensor)  # may hold 0: a count that nobody has looked at
    if isinstance(value, Tensor):
        check_tensor(op, name, value, (), (*FLOATS, torch.int64, torch.int32), device)
        if not values_at_hand(value):
            return
        value = value.item()
    if value is not None and not (is_number(value) and (low < value <= LARGEST or (zero and value == 0))):
        bound = "" if low == -torch.inf else f" {'>=' if zero else '>'} {low:g}"
        raise ValueError(f"{op}: {name} must be a finite number{bound}, got {value!r}")


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def settle_offsets(op: str, name: str, offsets: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """Offsets that the host does not know, as they must be: from 0 to `end`, never falling; and whether they were so.

    Kernels then stay inside of their tensors, and what wrong offsets are the offsets of is made NaN. Never waits.
    """
    if offsets.numel() == 1 and end > 0:
        raise ValueError(
            f"{op}: {name} must end at {end}, got one offset; build it as the cumulative sum of the lengths"
        )
    settled = offsets.clamp(0, end).cummax(0).values
    settled[:1] = 0
    settled[-1:] = end
    return settled, (settled == offsets).all()
