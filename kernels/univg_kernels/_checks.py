"""The checks of the doors. Each message says: op, argument, expected, got, remedy.

Checks of values run on CPU tensors only, and not while torch.compile traces: elsewhere they would wait for the device.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from ._autocast import as_linear

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTS = (torch.int64, torch.int32)
LARGEST = sys.float_info.max


def check_tensor(
    op: str,
    name: str,
    value: object,
    shape: tuple[int | None, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device | None = None,
    remedy: str = "",
) -> Tensor:
    """Raise ValueError unless `value` is a tensor of that shape (None: any size), dtype and device."""
    tail = f"; {remedy}" if remedy else ""
    if not isinstance(value, Tensor):
        raise ValueError(f"{op}: {name} must be a tensor, got {type(value).__name__}{tail}")
    fits = value.dim() == len(shape) and all(s is None or s == v for s, v in zip(shape, value.shape, strict=True))
    if not fits:
        want = ", ".join("any" if s is None else str(s) for s in shape)
        raise ValueError(f"{op}: {name} must be of shape [{want}], got {list(value.shape)}{tail}")
    if value.layout != torch.strided:
        raise ValueError(
            f"{op}: {name} must be a dense tensor, got layout {value.layout}; convert with {name}.to_dense()"
        )
    if value.dtype not in dtypes:
        want = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        got = str(value.dtype).removeprefix("torch.")
        raise ValueError(f"{op}: {name} must be {want}, got {got}{tail or f'; convert with {name}.to(...)'}")
    if device is not None and value.device != device:
        raise ValueError(
            f"{op}: {name} must be on {device} like the other tensors, got {value.device}; "
            f"move it with {name}.to({str(device)!r})"
        )
    return value


def values_at_hand(x: Tensor) -> bool:
    return x.is_cpu and not torch.compiler.is_compiling()


def check_ids(op: str, token_ids: object, rows: int, vocab: int, device: torch.device) -> Tensor:
    ids = check_tensor(op, "token_ids", token_ids, (rows,), INTS, device, "one id per row")
    if values_at_hand(ids) and rows:
        low, high = (int(v) for v in torch.aminmax(ids))
        if low < 0 or high >= vocab:
            raise ValueError(
                f"{op}: token_ids must be in [0, {vocab}), got values from {low} to {high}; give rows that are "
                "not scored any valid id and switch them off with mask"
            )
    return ids.contiguous()


def check_offsets(op: str, name: str, offsets: object, end: int, device: torch.device, of: str) -> Tensor:
    """Offsets [n+1]: start at 0, never fall, end at `end`."""
    cu = check_tensor(op, name, offsets, (None,), INTS, device)
    if cu.numel() < 1:
        raise ValueError(f"{op}: {name} must hold at least one offset, got none; begin it with 0")
    if values_at_hand(cu):
        values = cu.to(torch.int64)
        if int(values[0]) != 0 or bool((values[1:] < values[:-1]).any()):
            raise ValueError(f"{op}: {name} must begin with 0 and never fall, got {values[:16].tolist()}")
        if int(values[-1]) != end:
            raise ValueError(
                f"{op}: {name} must end at {end} (the number of {of}), got {int(values[-1])}; "
                f"build it as the cumulative sum of the lengths with a 0 in front"
            )
    return cu.contiguous()


def check_logits(op: str, logits: object) -> Tensor:
    z = check_tensor(op, "logits", logits, (None, None), FLOATS, remedy="flatten [B, L, V] with logits.view(-1, V)")
    if z.shape[1] == 0:
        raise ValueError(f"{op}: logits must have at least one column, got {list(z.shape)}")
    return z


def check_linear(
    op: str, hidden: object, weight: object, bias: object, prefix: str = ""
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(hidden, weight, bias), inside torch.autocast in its dtype. `prefix` names the arguments of a second head."""
    hidden, weight, bias = as_linear(hidden, weight, bias)
    h = check_tensor(op, f"{prefix}hidden", hidden, (None, None), FLOATS, remedy="pick the scored rows first: [N, H]")
    w = check_tensor(
        op,
        f"{prefix}weight",
        weight,
        (None, h.shape[1]),
        (h.dtype,),
        h.device,
        "weight is [V, H] as in nn.Linear, of hidden's dtype",
    )
    if w.shape[0] == 0:
        raise ValueError(
            f"{op}: {prefix}weight must have at least one row, got {list(w.shape)}; under ZeRO-3 gather it first "
            "with deepspeed.zero.GatheredParameters"
        )
    b = None if bias is None else check_tensor(op, f"{prefix}bias", bias, (w.shape[0],), (h.dtype,), h.device)
    return h, w, b


def check_weight_grad(op: str, weight_grad: object, weight: Tensor) -> None:
    if weight_grad is None:
        return
    dtypes = tuple({weight.dtype, torch.float32} if weight.dtype.itemsize < 8 else {weight.dtype})
    g = check_tensor(op, "weight_grad", weight_grad, tuple(weight.shape), dtypes, weight.device)
    if not torch.compiler.is_compiling() and g.numel() and g.data_ptr() == weight.data_ptr():
        raise ValueError(
            f"{op}: weight_grad must be a buffer of its own, got the memory of weight; "
            "make it with torch.zeros_like(weight, dtype=torch.float32)"
        )
    if g.requires_grad or not g.is_contiguous():
        raise ValueError(
            f"{op}: weight_grad must be a contiguous buffer that requires no gradient, got strides {list(g.stride())} "
            f"and requires_grad={g.requires_grad}; make it with torch.zeros_like(weight, dtype=torch.float32)"
        )


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_positive(op: str, name: str, value: Any) -> float:
    if not (is_number(value) and 0.0 < value <= LARGEST):
        raise ValueError(f"{op}: {name} must be a finite number > 0, got {value!r}")
    return float(value)
