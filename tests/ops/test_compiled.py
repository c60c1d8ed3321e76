"""Under torch.compile the doors give what they give without it, and are compiled once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import univg_kernels as uk
from torch._dynamo.testing import CompileCounterWithBackend

from tests.ops.coupled import COUPLED

DOORS = ["selective_logprob", "linear_logprob", "linear_ce", "grpo_loss", "linear_grpo_loss", "policy_loss"]


@pytest.mark.parametrize(
    ("op", "coupled"), [(op, coupled) for op in DOORS for coupled in COUPLED if coupled == "row" or op[-4:] == "loss"]
)
def test_compiled_equals_eager(make_case, op: str, coupled: str) -> None:
    """The doors trace without a graph break, backward pass included."""
    names = {"selective_logprob": ["logits"], "grpo_loss": ["logits"], "policy_loss": ["logp", "entropy"]}
    counter = CompileCounterWithBackend("aot_eager")

    torch.compiler.reset()

    def outcome(compiled: bool, case) -> list[torch.Tensor]:
        inputs, kwargs = case.arguments(op if op[-4:] == "loss" else "grpo_loss")
        if op == "policy_loss":
            inputs = (*inputs, kwargs.pop("entropy").requires_grad_())
        if op in ("linear_logprob", "linear_ce"):
            inputs = [getattr(case, n).clone().requires_grad_() for n in ("hidden", "weight", "bias")]
        if op[-4:] == "loss":
            kwargs = {k: v for k, v in kwargs.items() if k != "inplace"} | dict(config=COUPLED[coupled])
        else:
            kwargs = dict(token_ids=case.token_ids)
        if op == "linear_ce":
            kwargs["row_weight"] = torch.linspace(0, 1, len(case.token_ids))

        def loss(*x: torch.Tensor) -> torch.Tensor:
            named = dict(zip(names.get(op, ["hidden", "weight", "bias"]), (t * 1.5 for t in x), strict=True))
            out = getattr(uk, op)(**named, **kwargs)
            return (out[0] * 0.7).sum() if op != "linear_logprob" else (out[0] - out[1]).sum()

        loss(*inputs)  # the face is imported outside of the trace
        value = (torch.compile(loss, fullgraph=True, backend=counter) if compiled else loss)(*inputs)
        return [value, *torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)]

    case = make_case(seed=20).to(torch.float32)
    torch.testing.assert_close(outcome(True, case), outcome(False, case))
    assert counter.frame_count == 1


@pytest.mark.parametrize("op", ["linear_ce", "linear_grpo_loss"])
def test_compiled_with_every_argument(op: str) -> None:
    """The gradient of the weight in a given buffer, the reference policy in the same pass, a padded vocabulary."""
    torch.compiler.reset()
    g = torch.Generator().manual_seed(0)
    ids, ref_hidden, ref_weight = torch.randint(0, 20, (9,), generator=g), torch.rand(9, 4), torch.rand(30, 4)

    def call(hidden: torch.Tensor, weight: torch.Tensor, weight_grad: torch.Tensor) -> torch.Tensor:
        if op == "linear_ce":
            options = dict(row_weight=torch.linspace(0, 1, 9), vocab_size=20)
            return uk.linear_ce(hidden * 1.5, weight, ids, weight_grad=weight_grad, **options)[0]
        rows = dict(cu_seqlens=torch.tensor([0, 4, 4, 9]), advantages=torch.tensor([1.0, -1.0, 0.5]))
        return uk.linear_grpo_loss(
            hidden * 1.5, weight, ids, weight_grad=weight_grad, ref_hidden=ref_hidden, ref_weight=ref_weight,
            config=uk.GrpoConfig(vocab_size=20, loss_type="gmpo"), **rows,
        ).loss  # fmt: skip

    def outcome(loss: Any) -> list[torch.Tensor | None]:
        hidden, weight = (torch.linspace(-1, 1, n * 8).sin().view(n, 8).requires_grad_() for n in (9, 30))
        weight_grad = torch.ones(30, 8)
        value = loss(hidden, weight, weight_grad)
        value.backward()
        assert weight.grad is None
        return [value, hidden.grad, weight_grad]

    eager = outcome(call)
    torch.testing.assert_close(outcome(torch.compile(call, fullgraph=True, backend="aot_eager")), eager)


def test_compiled_with_one_weight_for_all_rows() -> None:
    """Of another number at each call: that of a step's tokens."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    ids = torch.arange(9)

    def loss(hidden: torch.Tensor, weight: torch.Tensor, tokens: float) -> torch.Tensor:
        return uk.linear_ce(hidden, weight, ids, row_weight=1 / tokens)[0]

    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for tokens in (9.0, 12.0, 17.0, 23.0):
        results = []
        for f in (loss, compiled):
            hidden, weight = (torch.linspace(-1, 1, n * 8).sin().view(n, 8).requires_grad_() for n in (9, 30))
            value = f(hidden, weight, tokens)
            results.append([value, *torch.autograd.grad(value, (hidden, weight))])
        torch.testing.assert_close(results[1], results[0])
    assert counter.frame_count <= 2


@pytest.mark.parametrize("op", DOORS)
def test_compiled_for_any_number_of_rows(op: str) -> None:
    """A batch of another size compiles once more, then never again."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def loss(
        x: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, cu: torch.Tensor, a: torch.Tensor
    ) -> torch.Tensor:
        if op == "policy_loss":
            return uk.policy_loss(x.sum(1), cu, advantages=a).loss
        head = (x @ weight.T,) if op in ("selective_logprob", "grpo_loss") else (x, weight)
        rows: dict[str, Any] = dict(cu_seqlens=cu, advantages=a) if op[-4:] == "loss" else {}
        rows |= dict(row_weight=x.detach()[:, 0]) if op == "linear_ce" else {}
        return getattr(uk, op)(*head, token_ids=ids, **rows)[0].sum()

    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for n, b in ((9, 3), (12, 4), (17, 5), (23, 2)):
        x, weight = torch.rand(n, 8, requires_grad=True), torch.rand(30, 8, requires_grad=True)
        cu = torch.linspace(0, n, b + 1).long()
        arguments = (x, weight, torch.randint(0, 30, (n,)), cu, torch.randn(b))
        results = []
        for f in (loss, compiled):
            value = f(*arguments)
            results.append([value, *torch.autograd.grad(value, (x, weight), allow_unused=True)])
        torch.testing.assert_close(*results)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("op", ["group_advantage", "difficulty_weight", "box_iou"])
def test_compiled_without_gradient(op: str) -> None:
    """As a rollout calls them: forward only, no graph break, exactly the eager numbers."""
    x = torch.rand(4, 4)
    arguments = {
        "group_advantage": (x[0], torch.tensor([0, 1, 4])), "difficulty_weight": (x[0],), "box_iou": (x, x.flip(0))
    }[op]  # fmt: skip
    eager = getattr(uk, op)(*arguments)
    compiled = torch.compile(getattr(uk, op), fullgraph=True, backend="aot_eager")(*arguments)
    torch.testing.assert_close(compiled, eager, rtol=0, atol=0)
