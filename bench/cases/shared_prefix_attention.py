"""`shared_prefix_attention`: a prompt 10 times as long as a response, with all of its responses, forward and backward.

Against torch's own attention with a copy of the prompt's keys for each response, and under a dense mask. On the CPU the
op is its specification, which is dense too: no speed is claimed for it there, a row says what it costs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import univg_kernels as uk
from torch import Tensor
from univg_kernels.shared_prefix_attention.reference import mask

from ..device import Device
from ..problem import faces, generator
from ..shapes import Shape, Shapes
from ..work import Case, Inputs, Outcome, Variant, Work


def cases(shapes: Shapes) -> list[Case]:
    name = "shared_prefix_attention"
    return [Case(name, d, s, "", build, share=0.5) for s in shapes[name] for d in s.dtypes]


def build(shape: Shape, dtype: torch.dtype, device: Device) -> Work:
    g, length = generator(device, 9), shape.length
    dim = 128 if shape.width >= 1024 else 64 if shape.width >= 512 else 16
    prompt, responses, heads = 10 * length, shape.rows // length, shape.width // dim
    layout = uk.shared_prefix([(prompt, [length] * responses)]).to(device.torch)
    sizes = {"query": heads, "key": max(1, heads // 4), "value": max(1, heads // 4)}
    tokens, dense = prompt + shape.rows, mask(layout)
    made = {
        n: torch.randn(tokens, h, dim, generator=g, device=device.torch).to(dtype) / dim**0.25 for n, h in sizes.items()
    }
    inputs, weights = Inputs(made), {"out": torch.randn(tokens, heads, dim, generator=g, device=device.torch) / tokens}

    def own(backend: uk.Backend) -> Any:
        def run(q: Tensor, k: Tensor, v: Tensor) -> Outcome:
            return {"out": uk.shared_prefix_attention(q, k, v, layout, backend=backend)}

        return run

    def masked(q: Tensor, k: Tensor, v: Tensor) -> Outcome:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return {"out": F.scaled_dot_product_attention(q, k, v, attn_mask=dense, enable_gqa=True)[0].transpose(0, 1)}

    def eager(q: Tensor, k: Tensor, v: Tensor) -> Outcome:
        k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / dim**0.5
        return {"out": torch.einsum("hqk,khd->qhd", scores.masked_fill(~dense, float("-inf")).softmax(-1), v)}

    own_mask = torch.ones(length, prompt + length, dtype=torch.bool, device=device.torch).tril(prompt)

    def copies(q: Tensor, k: Tensor, v: Tensor) -> Outcome:
        parts = [(x[:prompt].transpose(0, 1), x[prompt:].unflatten(0, (responses, length))) for x in (q, k, v)]
        (qp, qr), *shared = parts
        first = F.scaled_dot_product_attention(qp[None], *(p[None] for p, _ in shared), is_causal=True, enable_gqa=True)
        paths = [torch.cat([p.expand(responses, -1, -1, -1), r.transpose(1, 2)], 2) for p, r in shared]
        rest = F.scaled_dot_product_attention(qr.transpose(1, 2), *paths, attn_mask=own_mask, enable_gqa=True)
        return {"out": torch.cat([first[0].transpose(0, 1), rest.transpose(1, 2).flatten(0, 1)])}

    judge = inputs.judge(eager, upstream=weights)
    variants = {
        name: Variant(inputs.prepared(function, upstream=weights), judge)
        for name, function in {"sdpa, dense mask": masked, "sdpa, prompt copied": copies}.items()
    }
    for name, backend in (faces(device) | {"univg reference": "reference"}).items():
        if backend in ("triton", "reference"):
            variants[name] = Variant(inputs.prepared(own(backend), upstream=weights), judge, own=True)
    pairs = prompt * (prompt + 1) / 2 + responses * (length * prompt + length * (length + 1) / 2)
    variants = {n: Variant(v.prepare, v.judge, v.own, flops=14 * pairs * heads * dim) for n, v in variants.items()}
    return Work(variants, floor_bytes=float(sum(3 * x.numel() * x.element_size() for x in made.values())))
