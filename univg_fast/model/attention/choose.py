"""Which face attends: `model.attention`, checked on the device before the first step."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch

from univg_fast.model.attention.libraries import LIBRARIES, installed
from univg_fast.model.attention.text import FACES
from univg_fast.packing.layout import build_layout

NAMES = ("auto", "torch", "flash_attn", "xformers", "varlen", "triton", "dense")
# What "auto" tries on CUDA, in this order: a library installed on purpose, then torch's own, then the one that has to
# repeat grouped keys. No measurement is behind this order; "triton" comes in when one speaks for it.
AUTO = ("flash_attn", "varlen", "xformers")
LAYOUTS = {"torch": "grouped"}  # the face of a layout is otherwise named as the choice
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3}  # relative, against the dense mask in fp32


class Attention(NamedTuple):
    """`name` of the choice, `face` for build_layout, `line` to tell which and why."""

    name: str
    face: str
    line: str


def attention_of(model: Any, name: str = "auto") -> Attention:
    """`choose_attention` for a transformers model, where it lies. ValueError if a layer attends to a window only."""
    text = model.config.get_text_config()
    kinds = (getattr(text, "layer_types", None) or [])[: text.num_hidden_layers]
    for layer, kind in enumerate(kinds):
        if kind != "full_attention":
            raise ValueError(
                f"model.path: expected full_attention in all {len(kinds)} layers, got layer_types[{layer}]={kind!r} in "
                f"{model.name_or_path}/config.json, which no model.attention has; for full attention all the same set "
                "use_sliding_window to false there, and take out layer_types"
            )
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return choose_attention(name, model.device, model.dtype, heads, text.num_key_value_heads, head_dim)


def refuse_dropout(model: Any) -> None:
    """ValueError for a transformers model that, in training, would drop attention weights: no face here does."""
    dropout = getattr(model.config.get_text_config(), "attention_dropout", 0.0)
    if dropout:
        raise ValueError(
            f"model.path: expected attention_dropout 0 to train, got {dropout} in {model.name_or_path}/config.json, "
            "which no model.attention has; set it to 0 there"
        )


@cache
def choose_attention(
    name: str, device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int
) -> Attention:
    """What `name` means for a model of these numbers. ValueError where an explicit choice cannot run here."""
    if name not in NAMES:
        raise ValueError(f"model.attention: expected one of {', '.join(NAMES)}, got {name!r}")
    shape = (dtype, heads, kv_heads, head_dim)
    if name in (*LIBRARIES, "triton"):
        problem = obstacle(name, device, *shape)
        if problem:
            raise ValueError(f"model.attention={name}: {problem}; or use model.attention=auto or torch")
        return Attention(name, name, f"attention: {name}, as asked; its trial row agrees with the dense mask")
    if name != "auto":
        return Attention(name, LAYOUTS.get(name, name), f"attention: {name}, as asked")
    if device.type != "cuda":
        return Attention("torch", "grouped", f"attention: torch, the one for {device.type}")
    problems: list[str] = []
    for library in AUTO:
        problem = obstacle(library, device, *shape)
        if problem is None:
            why = "".join(f"; not {p}" for p in problems)
            return Attention(library, library, f"attention: {library}, whose trial row agrees with the dense mask{why}")
        problems.append(f"{library} ({problem})")
    return Attention("torch", "grouped", f"attention: torch; not {'; not '.join(problems)}")


def obstacle(
    face: str, device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int
) -> str | None:
    """Why `face` cannot attend for such a model on `device`; None if it did, and agreed with the dense mask."""
    try:
        if face in LIBRARIES:
            installed(face)
    except ValueError as error:
        return str(error)
    if device.type != "cuda" or dtype not in TOLERANCE:
        return f"expected a model in bfloat16 or float16 on a CUDA device, got {dtype} on {device}"
    try:
        worst = worst_error(face, device, dtype, heads, kv_heads, head_dim)
    except Exception as refusal:  # noqa: BLE001 - whatever a library raises is its reason, and is told
        return f"{type(refusal).__name__} on a trial row: {refusal}"
    limit = TOLERANCE[dtype]
    return None if worst <= limit else f"a trial row differs by {worst:.1e} from the dense mask, expected {limit:.0e}"


def worst_error(face: str, device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int) -> float:
    """Largest relative error of output and gradients on a small row, against the dense mask in fp32; NaN if one is."""
    spans = [(0, 150, [70, 3]), (223, 40, [])]
    generator = torch.Generator().manual_seed(0)
    shapes = ((heads, head_dim), (kv_heads, head_dim), (kv_heads, head_dim), (heads, head_dim))
    *qkv, weights = (torch.randn(263, *shape, generator=generator).to(device, dtype) for shape in shapes)
    found = _with_gradients(qkv, weights, spans, face)
    truth = _with_gradients([x.float() for x in qkv], weights.float(), spans, "dense")
    errors = [(a.float() - b).norm() / b.norm() for a, b in zip(found, truth, strict=True)]
    return float(torch.stack(errors).max())


def _with_gradients(
    qkv: list[torch.Tensor], weights: torch.Tensor, spans: list[tuple[int, int, list[int]]], face: str
) -> list[torch.Tensor]:
    leaves = [x.detach().requires_grad_() for x in qkv]
    layout = build_layout(spans, face).to(weights.device)
    with torch.enable_grad():
        out = FACES[type(layout)](*leaves, layout)
        return [out.detach(), *torch.autograd.grad(out, leaves, weights)]
