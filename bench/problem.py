"""Inputs: seeded, the same on every machine up to its random generator, made in fp32 and rounded once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import torch
import univg_kernels as uk
from torch import Tensor

from .device import Device
from .shapes import Shape

# log(ratio) of the rows: either side of the clip at 1 ± 0.2 and at the point itself, none so near to a bound that
# rounding log-probabilities to bf16 could carry it across.
STEPS = (-0.6, -0.35, -0.08, 0.0, 0.08, 0.35, 0.6)


@dataclass(frozen=True)
class Rows:
    """What a policy loss is told about its rows; all responses are `length` long, as padded layouts like it."""

    token_ids: Tensor  # [N]
    cu_seqlens: Tensor  # [B+1]
    advantages: Tensor  # [B]
    old_logp: Tensor  # [N]
    length: int

    @property
    def policy(self) -> dict[str, Any]:
        return dict(cu_seqlens=self.cu_seqlens, advantages=self.advantages, old_logp=self.old_logp)

    def padded(self, x: Tensor) -> Tensor:
        """[N, …] as [B, L, …]."""
        return x.view(-1, self.length, *x.shape[1:])


def generator(device: Device, seed: int) -> torch.Generator:
    return torch.Generator(device=device.torch).manual_seed(seed)


def make_logits(shape: Shape, dtype: torch.dtype, device: Device) -> Tensor:
    z = torch.empty(shape.rows, shape.vocab, device=device.torch)
    return z.normal_(generator=generator(device, 1)).mul_(3).to(dtype)


def make_head(shape: Shape, dtype: torch.dtype, device: Device) -> tuple[Tensor, Tensor]:
    """(hidden [N, H], weight [V, H]); the logits have a standard deviation of about 3."""
    g = generator(device, 2)
    hidden = torch.empty(shape.rows, shape.width, device=device.torch).normal_(generator=g)
    weight = torch.empty(shape.vocab, shape.width, device=device.torch).normal_(generator=g)
    return hidden.to(dtype), weight.mul_(3 / shape.width**0.5).to(dtype)


def make_ids(shape: Shape, device: Device) -> Tensor:
    return torch.randint(0, shape.vocab, (shape.rows,), device=device.torch, generator=generator(device, 3))


def make_rows(shape: Shape, device: Device, ids: Tensor, logp: Tensor, active: float = 1.0) -> Rows:
    """`logp`: of the present policy, around which the old one is put. `active`: share of the responses whose advantage
    is not 0; without a KL term the others have no gradient."""
    g = generator(device, 4)
    b = shape.rows // shape.length
    advantages = torch.empty(b, device=device.torch).normal_(generator=g)
    advantages[: round(b * (1 - active))] = 0
    pick = torch.randint(0, len(STEPS), (shape.rows,), device=device.torch, generator=g)
    steps = torch.tensor(STEPS, device=device.torch)[pick]
    cu = torch.arange(0, shape.rows + 1, shape.length, device=device.torch)
    return Rows(ids, cu, advantages, logp.float() - steps, shape.length)


def logits_logp(z: Tensor, ids: Tensor, chunk: int = 256) -> Tensor:
    """fp32 log-probabilities, a few rows at a time."""
    parts = zip(z.split(chunk), ids.split(chunk), strict=True)
    return torch.cat([torch.log_softmax(p.float(), -1).gather(1, i[:, None])[:, 0] for p, i in parts])


def head_logp(hidden: Tensor, weight: Tensor, ids: Tensor, chunk: int = 256) -> Tensor:
    parts = zip(hidden.split(chunk), ids.split(chunk), strict=True)
    return torch.cat([logits_logp(h @ weight.t(), i) for h, i in parts])


def faces(device: Device, *, cuda: bool = False) -> dict[str, uk.Backend]:
    """The faces that can run on this device, compiled ones first, the default one first of all. `cuda`: this op with
    these settings has a CUDA C++ face, where the library was built with one."""
    found: dict[str, uk.Backend] = {}
    for backend in get_args(uk.Backend):
        if backend == "cuda" and not cuda:
            continue
        try:
            found[f"univg {uk.resolve(device.torch, backend)}"] = backend
        except ValueError:  # says why it cannot run here
            continue
    return found
