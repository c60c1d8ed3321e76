"""What a gradient made in the forward pass must not get wrong: reuse, scaling, frozen and tied weights, no_grad."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import univg_kernels as uk
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from univg_kernels import _linear_head


def policy_arguments(case) -> dict[str, Any]:
    return dict(token_ids=case.token_ids, cu_seqlens=case.cu_seqlens, backend="cpp", **case.rows)


def test_inplace_gradient_lies_in_the_logits(make_case) -> None:
    case = make_case(seed=1).to(torch.float32)
    leaf = case.logits.clone().requires_grad_()
    logits = leaf * 1.0
    seen = []
    logits.register_hook(lambda g: seen.append(g.data_ptr()))
    uk.grpo_loss(logits, inplace=True, **policy_arguments(case)).loss.mul(0.3).backward()
    assert seen == [logits.data_ptr()]
    apart = case.logits.clone().requires_grad_()
    out = uk.grpo_loss(apart, inplace=False, **policy_arguments(case))
    (out.loss * 0.3).backward()
    assert torch.equal(apart.detach(), case.logits)
    torch.testing.assert_close(leaf.grad, apart.grad)


def test_inplace_in_a_wider_buffer(make_case) -> None:
    """A padded vocabulary: rows lie apart, and the padding is neither read nor written."""
    case = make_case(seed=2).to(torch.float32)
    n, v = case.logits.shape
    leaf = case.logits.clone().requires_grad_()
    wide = torch.full((n, v + 14), torch.nan)
    wide[:, :v] = leaf
    uk.grpo_loss(wide[:, :v], **policy_arguments(case)).loss.backward()
    assert bool(wide[:, v:].isnan().all())
    (want,), kwargs = case.arguments("grpo_loss")
    uk.grpo_loss(want, backend="reference", **kwargs).loss.backward()
    torch.testing.assert_close(leaf.grad, want.grad)


@pytest.mark.parametrize("layout", ["expanded rows", "transposed"])
def test_logits_that_cannot_be_overwritten_are_copied(make_case, layout: str) -> None:
    case = make_case(seed=3).to(torch.float32)
    n, v = case.logits.shape
    source = case.logits[:1].clone() if layout == "expanded rows" else case.logits.T.contiguous()

    def gradient(backend: str) -> Tensor:
        leaf = source.clone().requires_grad_()
        z = (leaf * 1.0).expand(n, v) if layout == "expanded rows" else (leaf * 1.0).T
        out = uk.grpo_loss(z, **{**policy_arguments(case), "backend": backend})
        return torch.autograd.grad(out.loss, leaf)[0]

    torch.testing.assert_close(gradient("cpp"), gradient("reference"))


USES = {
    "a value saved before": lambda z: z.square().sum(),
    "a use that saves nothing": lambda z: z.sum(),
    "the log-softmax": lambda z: z.log_softmax(-1).sum(),
}


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("use", USES)
def test_another_use_of_overwritten_logits_raises(make_case, use: str, before: bool) -> None:
    case = make_case(seed=4)
    logits = case.logits.clone().requires_grad_() * 1.0
    other = USES[use](logits) if before else None
    loss = uk.grpo_loss(logits, **policy_arguments(case)).loss
    other = USES[use](logits) if other is None else other
    with pytest.raises(RuntimeError, match="in-?place"):
        (loss + other).backward()


def shaped(case) -> tuple[Tensor, Tensor]:
    """(leaf [N, V], what a model returns of it: not a leaf, [1, N, V])."""
    leaf = case.logits.clone().requires_grad_()
    return leaf, (leaf * 1.0)[None].clone()


def reference_gradient(case) -> Tensor:
    (logits,), kwargs = case.arguments("grpo_loss")
    return torch.autograd.grad(uk.grpo_loss(logits, backend="reference", **kwargs).loss, logits)[0]


def test_inplace_in_a_reshaped_tensor(make_case) -> None:
    """[B, L, V] flattened to rows: nothing of that size is made on the way back, and hooks may still be registered."""
    case = make_case(seed=30).to(torch.float32)
    leaf, model_output = shaped(case)
    seen = []
    model_output.register_hook(lambda g: seen.append(g.data_ptr()))
    rows = model_output.view(-1, model_output.shape[-1])
    loss = uk.grpo_loss(rows, **policy_arguments(case)).loss
    rows.register_hook(lambda g: g)
    (loss * 3.0).backward()
    assert seen == [model_output.data_ptr()]
    torch.testing.assert_close(leaf.grad, 3 * reference_gradient(case))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("use", USES)
def test_another_use_of_a_reshaped_tensor_raises(make_case, use: str, before: bool) -> None:
    """Through the tensor that the rows are another shape of, or through another view of it."""
    case = make_case(seed=31)
    for other_view in (False, True):
        _, model_output = shaped(case)
        other = USES[use](model_output.view(-1) if other_view else model_output) if before else None
        loss = uk.grpo_loss(model_output.view(case.logits.shape), **policy_arguments(case)).loss
        other = USES[use](model_output.view(-1) if other_view else model_output) if other is None else other
        with pytest.raises(RuntimeError, match="in-?place"):
            (loss + other).backward()


def test_a_later_use_of_the_rows_themselves_raises(make_case) -> None:
    case = make_case(seed=32)
    leaf, model_output = shaped(case)
    for rows in (model_output.view(case.logits.shape), torch.stack([leaf, leaf])[0]):
        loss = uk.grpo_loss(rows, **policy_arguments(case)).loss
        with pytest.raises(RuntimeError, match="inplace=False"):
            (loss + rows.sum()).backward()


@pytest.mark.parametrize("views", ["slices", "unbind", "scaled in place"])
def test_inplace_in_parts_of_one_tensor(make_case, views: str) -> None:
    """Each loss overwrites its part, and only its part."""
    case = make_case(seed=33, lengths=(4, 4), groups=(2,)).to(torch.float32)
    arguments = policy_arguments(case)
    arguments |= dict(cu_seqlens=torch.tensor([0, 4, 8]))
    leaf = case.logits.clone().requires_grad_()
    pair = torch.stack([leaf, leaf * 0.5])
    if views == "scaled in place":
        pair.mul_(1.0)
    parts = pair.unbind(0) if views == "unbind" else (pair[0], pair[1])
    losses = [uk.grpo_loss(part, **arguments).loss for part in parts]
    (losses[0] * 2.0 + losses[1] * 3.0).backward()
    other = case.logits.clone().requires_grad_()
    kwargs = {**arguments, "backend": "reference", "inplace": False}
    one, two = (uk.grpo_loss(z, **kwargs).loss for z in (other, other * 0.5))
    (one * 2.0 + two * 3.0).backward()
    torch.testing.assert_close(leaf.grad, other.grad)


def test_two_losses_of_overwritten_logits_raise(make_case) -> None:
    case = make_case(seed=4)
    for pick in (lambda a, b: a + b, lambda a, b: a, lambda a, b: b):
        logits = case.logits.clone().requires_grad_() * 1.0
        losses = [uk.grpo_loss(logits, **policy_arguments(case)).loss for _ in range(2)]
        with pytest.raises(RuntimeError, match="inplace=False"):
            pick(*losses).backward()


@pytest.mark.parametrize("op", ["grpo_loss", "linear_grpo_loss", "linear_ce"])
def test_second_backward_raises(make_case, op: str) -> None:
    case = make_case(seed=5)
    if op == "linear_ce":
        hidden = case.hidden.clone().requires_grad_()
        loss, _ = uk.linear_ce(hidden, case.weight, case.token_ids, row_weight=torch.ones(len(hidden)), backend="cpp")
    else:
        inputs, kwargs = case.arguments(op)
        names = ["logits"] if op == "grpo_loss" else ["hidden", "weight", "bias"]
        if op == "grpo_loss":
            inputs, kwargs["inplace"] = (inputs[0] * 1.0,), True
        loss = getattr(uk, op)(**dict(zip(names, inputs, strict=True)), backend="cpp", **kwargs).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=f"{op}: second backward pass"):
        loss.backward()


def test_backward_may_be_repeated_out_of_place(make_case) -> None:
    case = make_case(seed=5)
    (logits,), kwargs = case.arguments("grpo_loss")
    loss = uk.grpo_loss(logits, backend="cpp", **kwargs).loss
    one, two = (
        torch.autograd.grad(loss, logits, grad_outputs=g, retain_graph=True)[0] for g in (loss * 0 + 1, loss * 0 + 3)
    )
    torch.testing.assert_close(one * 3, two)


def test_leaf_logits_are_refused_in_place(make_case) -> None:
    case = make_case(seed=6)
    leaf = case.logits.clone().requires_grad_()
    with pytest.raises(ValueError, match=r"grpo_loss: logits must not be a leaf .* pass inplace=False"):
        uk.grpo_loss(leaf, **policy_arguments(case))
    with torch.no_grad():
        uk.grpo_loss(leaf, **policy_arguments(case))
    assert torch.equal(leaf.detach(), case.logits)


class Products(TorchDispatchMode):
    """Counts the multiplications of matrix products, in units of one full hidden @ weight.T."""

    def __init__(self, unit: int):
        super().__init__()
        self.unit, self.count = unit, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            a, b = args[-2:]
            self.count += a.shape[0] * a.shape[1] * b.shape[1] / self.unit
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("setting", "products"),
    [
        ("train", 3),
        ("frozen weight", 2),
        ("frozen hidden", 2),
        ("no_grad", 1),
        ("half inactive", 2),
        ("all inactive", 1),
    ],
)
def test_number_of_products(make_case, setting: str, products: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three for a step, two for a frozen side, one without gradients; rows without a gradient leave the
    backward two."""
    monkeypatch.setattr(_linear_head, "default_chunk_rows", lambda num_rows, vocab: 256)
    case = make_case(seed=7, lengths=(200, 200, 200, 200), groups=(4,), vocab=30, masked=False, old=False, ref=False)
    advantages = torch.tensor({"half inactive": [1.0, 0, -1, 0], "all inactive": [0.0] * 4}.get(setting, [1.0] * 4))
    hidden = case.hidden.clone().requires_grad_(setting != "frozen hidden")
    weight = case.weight.clone().requires_grad_(setting != "frozen weight")
    with Products(hidden.numel() * weight.shape[0]) as counter, torch.set_grad_enabled(setting != "no_grad"):
        out = uk.linear_grpo_loss(hidden, weight, case.token_ids, case.cu_seqlens, advantages=advantages, backend="cpp")
        if setting != "no_grad":
            out.loss.backward()
    assert counter.count == pytest.approx(products)
    assert out.loss.requires_grad == (setting != "no_grad")
    assert (hidden.grad is None) == (setting in ("frozen hidden", "no_grad"))
    assert (weight.grad is None) == (setting in ("frozen weight", "no_grad"))


@pytest.mark.parametrize("op", ["linear_grpo_loss", "linear_ce", "linear_logprob"])
@pytest.mark.parametrize("frozen", ["none", "weight", "hidden"])
def test_tied_and_frozen_weights(make_case, op: str, frozen: str) -> None:
    """The head's weight is the embedding as well: both gradients add up in weight.grad."""
    case = make_case(seed=8, vocab=20).to(torch.float32)

    def gradients(backend: str) -> list[Tensor | None]:
        weight = case.weight.clone().requires_grad_(frozen != "weight")
        mixer = torch.eye(8).mul_(0.7).requires_grad_()
        hidden = torch.nn.functional.embedding(case.token_ids, weight) @ mixer
        if frozen == "hidden":
            hidden = hidden.detach()
        if op == "linear_grpo_loss":
            loss = uk.linear_grpo_loss(hidden, weight, **{**policy_arguments(case), "backend": backend}).loss
        elif op == "linear_ce":
            row_weight = torch.linspace(0, 1, len(hidden))
            loss, _ = uk.linear_ce(hidden, weight, case.token_ids, row_weight=row_weight, backend=backend)
        else:
            logp, entropy = uk.linear_logprob(hidden, weight, case.token_ids, backend=backend)
            loss = (logp * torch.linspace(-1, 1, len(hidden))).sum() + 0.1 * entropy.sum()
        (loss * 2.5).backward()
        return [weight.grad, mixer.grad]

    for got, want in zip(gradients("cpp"), gradients("reference"), strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_masked_rows_may_hold_anything(make_case) -> None:
    case = make_case(seed=9)
    off = ~case.rows["mask"]
    assert bool(off.any())
    for backend in ("reference", "cpp"):
        outcomes = []
        for filler in (0.0, torch.nan):
            z = case.logits.clone()
            z[off] = filler
            z.requires_grad_()
            rows = {k: v.clone() for k, v in case.rows.items()}
            rows["old_logp"][off] = filler
            rows["ref_logp"][off] = filler
            out = uk.grpo_loss(z, case.token_ids, case.cu_seqlens, inplace=False, backend=backend, **rows)
            outcomes.append((*out, torch.autograd.grad(out.loss, z)[0][~off]))
        for a, b in zip(*outcomes, strict=True):
            assert torch.equal(a, b), backend
