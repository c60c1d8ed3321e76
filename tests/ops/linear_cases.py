"""Cases and fixtures of the tests of the linear heads: test_linear_*.py."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
import univg_kernels as uk
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from univg_kernels import _linear_forward, _linear_head
from univg_kernels._linear_sweeps import Kept, Skipping, order_on_device, skipping_on_host

CHUNK, STRIP = 16, 12  # rows of whole logits, columns of some: more than one, none of them even
SEVERAL = dict(lengths=(7, 0, 9, 3, 12, 5, 0, 2, 10, 4), groups=(4, 6))  # 52 rows: 4 chunks, none of them even


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_linear_forward, "STRIP", STRIP)
    monkeypatch.setattr(_linear_forward, "ROWS", CHUNK + 4)
    monkeypatch.setattr(_linear_head, "default_chunk_rows", lambda num_rows, vocab: CHUNK)


def move_by_copy(z: Tensor, kept: Kept) -> None:
    count = int(kept.number)
    z[:count] = z[kept.rows[:count]]


SKIPPING = {
    "on the host": skipping_on_host,
    # The way of the Triton face, with the C++ kernels and torch's grouped products on the CPU.
    "on the device": lambda: Skipping(order_on_device, move_by_copy),
    "nothing": lambda: None,
}


@pytest.fixture(params=["on the host"])
def skipping(request, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who counts the rows without a gradient. Only the host foresees which they will be."""
    for op in ("linear_grpo_loss", "linear_ce", "linear_logprob"):
        monkeypatch.setattr(import_module(f"univg_kernels.{op}.cpp_impl"), "skipping_on_host", SKIPPING[request.param])
    if request.param != "on the host":
        kernels = import_module("univg_kernels.linear_grpo_loss.cpp_impl")._Kernels
        monkeypatch.setattr(kernels, "foresee", lambda self: (None, None))
    return request.param


ROW = uk.GrpoConfig(temperature=0.9)
RESPONSE = uk.GrpoConfig(importance_sampling_level="sequence", temperature=0.9)
BATCH = uk.GrpoConfig(top_entropy_quantile=0.6, entropy_coef=0.02)
CONFIGS = {
    "rows": ROW,
    "rows with an entropy bonus": uk.GrpoConfig(entropy_coef=0.05),
    "rows without a KL term": uk.GrpoConfig(beta=0.0),
    "responses": RESPONSE,
    "responses, gmpo": uk.GrpoConfig(loss_type="gmpo"),
    "responses with an entropy bonus": uk.GrpoConfig(loss_type="vespo", entropy_coef=0.05),
    "batch": BATCH,
    "padding, soft cap, scale": uk.GrpoConfig(vocab_size=37, softcap=1.5, logit_scale=0.7, temperature=1.2),
    "padding, responses": uk.GrpoConfig(vocab_size=37, importance_sampling_level="sequence_token"),
    "padding, batch": uk.GrpoConfig(vocab_size=37, top_entropy_quantile=0.5),
}
SHAPES = {
    "one chunk": dict(lengths=(3, 0, 5, 1, 4, 2), groups=(3, 1, 2)),
    "several chunks": SEVERAL,
    "a response longer than a chunk": dict(lengths=(5, 30, 2, 0, 18), groups=(2, 3)),
}


HIDDEN, WEIGHT = 3, 4  # their gradients' places in `outcome`


def make(make_case, seed: int, **options: Any):
    """A case whose tokens are all below 37."""
    case = make_case(seed, **options)
    case.token_ids.remainder_(37)
    return case


def references(case, kind: str) -> dict[str, Any]:
    """Arguments of a reference policy in the same pass. Its hidden states are neither this policy's nor as wide."""
    if kind == "none":
        return {}
    g = torch.Generator().manual_seed(99)

    def rand(*shape: int) -> Tensor:
        return torch.round(torch.randn(*shape, generator=g, dtype=torch.float64) * 16).div(32).to(case.hidden.dtype)

    if kind == "tied weight":
        return {"ref_hidden": rand(*case.hidden.shape)}
    weight = rand(case.weight.shape[0], 4)
    return {"ref_hidden": rand(len(case.hidden), 4), "ref_weight": weight, "ref_bias": rand(len(weight))}


def outcome(case, config: uk.GrpoConfig, backend: str, reference: str = "none", bias: bool = True) -> list[Tensor]:
    inputs, kwargs = case.arguments("linear_grpo_loss")
    kwargs |= references(case, reference)
    if reference != "none":
        kwargs["ref_logp"] = None
    names = ["hidden", "weight", "bias"][: 3 if bias else 2]
    named = dict(zip(names, inputs[: len(names)], strict=True))
    out = uk.linear_grpo_loss(**named, config=config, backend=backend, **kwargs)
    return [*out, *torch.autograd.grad(out.loss * 2.0, tuple(named.values()))]


class Called(TorchDispatchMode):
    """Names of the operations, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class Products(TorchDispatchMode):
    """Rows of logits in the products, one for each product that they are in; and the largest new tensor."""

    def __init__(self, width: int, vocab: int):
        super().__init__()
        self.unit, self.rows, self.largest = width * vocab, 0.0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket
        if name in (torch.ops.aten.mm, torch.ops.aten.addmm):
            a, b = args[-2:]
            self.rows += a.shape[0] * a.shape[1] * b.shape[1] / self.unit
        if name == torch.ops.aten._grouped_mm:
            (a, b), count = args[:2], int((kwargs or {}).get("offs", args[2] if len(args) > 2 else None))
            over_rows = b.dim() == 2  # z.T @ hidden: contracted over rows
            size = a.shape[0] * b.shape[1] if over_rows else a.shape[1] * b.shape[2]
            self.rows += count * size / self.unit
        made = result if isinstance(result, Tensor) else None
        if made is not None and not made._is_view() and "out" not in (kwargs or {}) and not func._schema.is_mutable:
            self.largest = max(self.largest, made.numel())
        return result


N, V, H = 80, 30, 8
EVEN = dict(lengths=(8,) * 10, groups=(10,), vocab=V, masked=False, old=False, ref=False)
HALF = torch.tensor([1.0, 0.0] * 5)
ONES = torch.ones(10)
