"""Liger's kernels in place of a model's RMSNorm, LayerNorm, SwiGLU and RoPE, each seen in use before it is replaced.

Liger's own patch functions name symbols that the installed transformers may not use any more (its mRoPE patch is one),
which patches nothing and says nothing. Here a forward pass of a small row is watched first: a symbol that it does not
call is an error.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.activations import SiLUActivation

from univg_fast.model.packed import PackedModel
from univg_fast.packing.rows import Row, build_row
from univg_fast.structs import Group, Record, Sample

ROTARY = ("apply_rotary_pos_emb", "apply_rotary_pos_emb_vision")
REQUIRED = ("RMSNorm", "SwiGLU", "RoPE")  # every family's language model has them; LayerNorm is some towers'


@dataclass(frozen=True)
class Patch:
    """`owner.attribute`, a module's forward or a function of a Python module, and what stands in for it."""

    kind: str
    symbol: str  # for people: Class.forward, or python_module.function
    owner: Any
    attribute: str
    replacement: Callable[..., Any]


def apply_liger(packed: PackedModel) -> str:
    """Replace the symbols of a model on a CUDA device; returns one line that says what was replaced, how often.

    The functions of RoPE are replaced in transformers' module, so for all models of the family in this process.
    Raises: ValueError without a CUDA device or the package, or if a symbol is missing or not called.
    """
    if packed.device.type != "cuda":
        raise ValueError(
            f"model.liger: expected a CUDA device, got {packed.device}; its kernels are Triton's: set false"
        )
    patches = find_patches(packed.model)
    check_used(packed, patches)
    for patch in patches:
        setattr(patch.owner, patch.attribute, patch.replacement)
    count = Counter(f"{patch.kind} ({patch.symbol})" for patch in patches)
    return "liger: " + ", ".join(f"{name} x{n}" for name, n in sorted(count.items()))


def find_patches(model: Any) -> list[Patch]:
    """What Liger replaces in a transformers model. ValueError if it has none of a kind that it must have."""
    try:
        from liger_kernel import ops
        from liger_kernel.transformers import rope
    except ImportError as error:
        raise ValueError(
            f"model.liger: expected the package liger-kernel ({error}); pip install liger-kernel"
        ) from None
    found: list[Patch] = []

    def forward_of(kind: str, module: nn.Module, replacement: Callable[..., Any], kernel: Any) -> None:
        symbol = f"{type(module).__name__}.forward"
        # what a deep copy of the model can copy: its own `module`, and a class
        found.append(Patch(kind, symbol, module, "forward", partial(replacement, kernel, module)))

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            forward_of("RMSNorm", module, _rms_norm, ops.LigerRMSNormFunction)
        elif isinstance(module, nn.LayerNorm):
            forward_of("LayerNorm", module, _layer_norm, ops.LigerLayerNormFunction)
        elif _is_swiglu(module):
            forward_of("SwiGLU", module, _swiglu, ops.LigerSiLUMulFunction)
    for name in ROTARY:
        for home in sorted({type(m).__module__ for m in model.modules() if _calls(m, name)}):
            replacement = getattr(rope, name.replace("apply", "liger"))
            found.append(Patch("RoPE", f"{home.rpartition('.')[2]}.{name}", sys.modules[home], name, replacement))
    missing = [kind for kind in REQUIRED if kind not in {p.kind for p in found}]
    if missing:
        raise ValueError(
            f"model.liger: found no {' and no '.join(missing)} in {type(model).__name__}, so Liger's would be unused; "
            "set model.liger=false, or use a transformers that constraints.txt names"
        )
    return found


def check_used(packed: PackedModel, patches: list[Patch]) -> None:
    """Run a small row and count the calls of each patch's place. ValueError that names the symbols without one."""
    calls: Counter[int] = Counter()

    def counting(index: int, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[index] += 1
            return original(*args, **kwargs)

        return call

    originals = [getattr(p.owner, p.attribute) for p in patches]
    owned = [p.attribute in vars(p.owner) for p in patches]
    was = packed.training
    try:
        for i, patch in enumerate(patches):
            setattr(patch.owner, patch.attribute, counting(i, originals[i]))
        with torch.no_grad():
            packed.eval().states(small_row(packed).to(packed.device))
    finally:
        packed.train(was)
        for patch, original, own in zip(patches, originals, owned, strict=True):
            if own:
                setattr(patch.owner, patch.attribute, original)
            else:
                delattr(patch.owner, patch.attribute)  # the class's again
    unused = Counter(p.symbol for i, p in enumerate(patches) if not calls[i])
    if unused:
        names = ", ".join(f"{symbol} ({n} of them)" for symbol, n in unused.items())
        raise ValueError(
            f"model.liger: a forward pass does not call {names}; Liger's would be silently unused. "
            "Set model.liger=false, or use a transformers that constraints.txt names"
        )


def small_row(packed: PackedModel) -> Row:
    """A prompt of one smallest image between two tokens, with one response token."""
    family, side = packed.family, packed.family.merge_size
    sample = Sample(
        record=Record("model.liger", "model.liger", (), ""),
        prompt_ids=np.array([0, family.image_token_id, 0], np.int64),
        image_grid_thw=np.array([[1, side, side]], np.int64),
        pixel_values=np.zeros((side * side, family.patch_dim), np.float32),
        sizes=((side, side),),
    )
    return build_row([Group(sample, (np.array([0], np.int64),))], family, attention=packed.attention.face)


def _is_swiglu(module: nn.Module) -> bool:
    """Gate, up and down projections around a SiLU; a `hidden_act` of another kind is left alone."""
    parts = all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj"))
    return parts and isinstance(getattr(module, "act_fn", None), (nn.SiLU, SiLUActivation))


def _calls(module: nn.Module, name: str) -> bool:
    """Whether the forward pass of the module's class reads `name`, a global of the Python module it is written in."""
    forward = inspect.unwrap(type(module).forward)
    code = getattr(forward, "__code__", None)
    return code is not None and name in code.co_names and hasattr(sys.modules[type(module).__module__], name)


def _rms_norm(kernel: Any, module: Any, x: torch.Tensor) -> torch.Tensor:
    # not in place: x is also the residual that comes after
    return kernel.apply(x, module.weight, module.variance_epsilon, 0.0, "llama", False)


def _layer_norm(kernel: Any, module: Any, x: torch.Tensor) -> torch.Tensor:
    return kernel.apply(x, module.weight, module.bias, module.eps)


def _swiglu(kernel: Any, module: Any, x: torch.Tensor) -> torch.Tensor:
    return module.down_proj(kernel.apply(module.gate_proj(x), module.up_proj(x)))
