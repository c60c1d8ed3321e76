"""Loss heads on the CPU: proves them right, then times them against eager torch.

    python bench/ops.py [--repeats 5] [--only grpo_loss_fp32] [--out bench/results/cpu_YYYYMMDD.jsonl]

Prints the ratios of the project's targets; --out appends one JSON row per variant. Exits with 1, before any
timing,
where a face is wrong.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import univg_kernels as uk
from harness import Run, append_rows, measure, stamp
from torch import Tensor

VOCAB = 151936  # Qwen2-VL-2B, Qwen2.5-VL-3B: not a multiple of 256
LENGTH = 64  # tokens of a response
LOGITS_ROWS = 512  # 8 responses
LINEAR = {"rows": 2560, "width": 896}  # 40 responses, hidden size of a 0.5B model


def policy_rows(n: int, active: float = 1.0) -> dict[str, Any]:
    b = n // LENGTH
    g = torch.Generator().manual_seed(0)
    advantages = torch.randn(b, generator=g)
    advantages[: round(b * (1 - active))] = 0
    return dict(
        token_ids=torch.randint(0, VOCAB, (n,), generator=g),
        cu_seqlens=torch.arange(0, n + 1, LENGTH),
        advantages=advantages,
    )


def eager_loss(z: Tensor, rows: dict[str, Any], per_row: bool) -> Tensor:
    """What a trainer writes without a fused head; `per_row`: one log-sum-exp per row (less memory)."""
    target = z.gather(1, rows["token_ids"][:, None])[:, 0]
    if per_row:
        logp = target - torch.stack([torch.logsumexp(row, -1) for row in z])
    else:
        logp = torch.log_softmax(z, -1).gather(1, rows["token_ids"][:, None])[:, 0]
    logp = logp.float()
    ratio, a = torch.exp(logp - logp.detach()), rows["advantages"].repeat_interleave(LENGTH)
    return -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a).mean()


def logits_runs(dtype: torch.dtype) -> dict[str, Run]:
    source = torch.randn(LOGITS_ROWS, VOCAB, generator=torch.Generator().manual_seed(1)).mul_(3).to(dtype)
    rows = policy_rows(LOGITS_ROWS)

    def prepared(loss: Callable[[Tensor], Tensor]) -> Run:
        def prepare() -> Callable[[], None]:
            logits = source.clone().requires_grad_()
            # A view: the losses see a tensor that has a history, as the output of a model does.
            return lambda: loss(logits.view_as(logits)).backward()

        return prepare

    return {
        "eager_log_softmax": prepared(lambda z: eager_loss(z, rows, per_row=False)),
        "eager_logsumexp": prepared(lambda z: eager_loss(z, rows, per_row=True)),
        "univg": prepared(lambda z: uk.grpo_loss(z, **rows, backend="cpp").loss),
    }


def linear_runs() -> dict[str, Run]:
    g = torch.Generator().manual_seed(2)
    n, width = LINEAR["rows"], LINEAR["width"]
    hidden, weight = torch.randn(n, width, generator=g), torch.randn(VOCAB, width, generator=g).mul_(0.05)
    dense, half = policy_rows(n), policy_rows(n, active=0.5)

    def products() -> None:
        z = hidden @ weight.t()
        (z @ weight, z.t() @ hidden)

    def prepared(rows: dict[str, Any], loss: Callable[..., Tensor]) -> Run:
        def prepare() -> Callable[[], None]:
            h, w = hidden.clone().requires_grad_(), weight.detach().requires_grad_()
            return lambda: loss(h, w, rows).backward()

        return prepare

    def ours(h: Tensor, w: Tensor, rows: dict[str, Any]) -> Tensor:
        return uk.linear_grpo_loss(h, w, **rows, backend="cpp").loss

    return {
        "three_products": lambda: products,
        "eager_log_softmax": prepared(dense, lambda h, w, rows: eager_loss(h @ w.t(), rows, per_row=False)),
        "univg": prepared(dense, ours),
        "univg_half_active": prepared(half, ours),
    }


def prove() -> None:
    """Loss and gradients of the timed faces against fp64, at the timed vocabulary, within twice eager's
    error."""
    n = 2 * LENGTH
    rows = policy_rows(n)
    g = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(n, 16, generator=g), torch.randn(VOCAB, 16, generator=g)
    for dtype, slack in ((torch.float32, 1e-6), (torch.bfloat16, 1e-4)):

        def outcome(op: str, backend: uk.Backend, wide: bool, dtype: torch.dtype = dtype) -> list[Tensor]:
            h, w = (t.to(dtype).to(torch.float64 if wide else dtype).requires_grad_() for t in (hidden, weight))
            if op == "grpo_loss":
                z = (hidden @ weight.t()).to(dtype).to(h.dtype).requires_grad_()
                out, inputs = uk.grpo_loss(z, inplace=False, backend=backend, **rows), [z]
            else:
                out, inputs = uk.linear_grpo_loss(h, w, backend=backend, **rows), [h, w]
            return [out.loss.detach(), *torch.autograd.grad(out.loss, inputs)]

        for op in ("grpo_loss", "linear_grpo_loss"):
            truth, eager = outcome(op, "reference", True), outcome(op, "reference", False)
            for got, e, t in zip(outcome(op, "cpp", False), eager, truth, strict=True):
                error, allowed = (got.double() - t).abs().max(), 2 * (e.double() - t).abs().max()
                if not error <= allowed + slack * t.abs().max().clamp(min=0.1):
                    raise SystemExit(f"{op} in {dtype} is wrong: error {error:.2e}, eager's is {allowed / 2:.2e}")
    print("correct: loss and gradients within twice the error of eager torch, fp32 and bf16")


def box_runs() -> dict[str, Run]:
    boxes = torch.randint(0, 1001, (2, 100_000, 4), generator=torch.Generator().manual_seed(4))

    def loop() -> list[float]:
        out = []
        for p, q in zip(boxes[0].tolist(), boxes[1].tolist(), strict=True):
            w, h = min(p[2], q[2]) - max(p[0], q[0]), min(p[3], q[3]) - max(p[1], q[1])
            inter = w * h if w > 0 and h > 0 else 0
            union = max(p[2] - p[0], 0) * max(p[3] - p[1], 0) + max(q[2] - q[0], 0) * max(q[3] - q[1], 0) - inter
            out.append(inter / union if inter else 0.0)
        return out

    torch.testing.assert_close(uk.box_iou(*boxes, backend="cpp"), torch.tensor(loop()))
    return {"python_loop": lambda: loop, "univg": lambda: lambda: uk.box_iou(*boxes, backend="cpp")}


@dataclass(frozen=True)
class Case:
    runs: Callable[[], dict[str, Run]]
    avoided_bytes: int = 0  # of the logits that a fused head need not hold twice, or at all
    gradient_bytes: int = 0  # of the results, which are no overhead


LOGITS = LOGITS_ROWS * VOCAB
CASES = {
    "grpo_loss_fp32": Case(lambda: logits_runs(torch.float32), LOGITS * 4),
    "grpo_loss_bf16": Case(lambda: logits_runs(torch.bfloat16), LOGITS * 2),
    "linear_grpo_loss_fp32": Case(
        linear_runs, LINEAR["rows"] * VOCAB * 4, (VOCAB + LINEAR["rows"]) * LINEAR["width"] * 4
    ),
    "box_iou": Case(box_runs),
}


def report(name: str, case: Case, result: dict[str, dict[str, float]]) -> None:
    own = result["univg"]
    for variant, r in result.items():
        extra = r["peak_extra_bytes"] - case.gradient_bytes
        share = f" = {extra / case.avoided_bytes:4.0%} of the logits" if case.avoided_bytes else ""
        print(
            f"{name:22s}{variant:18s} wall {r['wall_p50_s']:7.4f} s [{r['wall_p20_s']:.4f}, {r['wall_p80_s']:.4f}]"
            f"  cpu {r['cpu_p50_s']:7.4f} s  univg's time x {r['cpu_p50_s'] / own['cpu_p50_s']:6.2f} cpu, "
            f"{r['wall_p50_s'] / own['wall_p50_s']:6.2f} wall  extra {extra / 2**20:5.0f} MiB{share}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    prove()
    print(f"{torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}")
    for name, case in CASES.items():
        if options.only in (None, name):
            before = stamp()
            result = measure(case.runs(), options.repeats)
            report(name, case, result)
            if options.out:
                rows = [dict(case=name, variant=k, repeats=options.repeats, **v, **before) for k, v in result.items()]
                append_rows(options.out, rows)


if __name__ == "__main__":
    main()
