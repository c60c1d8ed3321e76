"""From the host to a GPU without waiting: only what lies in page-locked memory is copied while the host goes on."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch


def pinned(item: Any, device: torch.device) -> Any:
    """For a GPU a copy with every tensor of a dataclass, tuple or dict, at any depth, in page-locked memory."""
    if device.type != "cuda":
        return item
    with torch.cuda.device(device):  # a new thread's device is the first one, whatever the rank
        return _pinned(item)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on `device`; the host does not wait for what a GPU has still to do before."""
    here: torch.Tensor = pinned(tensor, device)
    return here.to(device, non_blocking=True)


def _pinned(item: Any) -> Any:
    if isinstance(item, torch.Tensor):
        return item.pin_memory()
    if is_dataclass(item) and not isinstance(item, type):
        return replace(item, **{field.name: _pinned(getattr(item, field.name)) for field in fields(item)})
    if isinstance(item, tuple):
        parts = tuple(_pinned(part) for part in item)
        return type(item)(*parts) if hasattr(item, "_fields") else parts
    return {key: _pinned(part) for key, part in item.items()} if isinstance(item, dict) else item
