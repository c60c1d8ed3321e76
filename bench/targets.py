"""The figures that the project has set itself (README and docs), read off one run's rows."""

from __future__ import annotations

from typing import Any, NamedTuple

from .table import is_fast

Row = dict[str, Any]


class Target(NamedTuple):
    what: str
    bound: str
    reached: float | None  # None: not in this run
    met: bool

    def text(self) -> str:
        if self.reached is None:
            return f"{self.what}: not measured in this run"
        return f"{self.what}: {self.reached:.3g} ({self.bound}) {'met' if self.met else 'MISSED'}"


def _median(rows: list[Row], case: str, variant: str, key: str = "wall_p50_s") -> float | None:
    """Of the first mode measured (on a GPU the hot one)."""
    return next(
        (r[key] for r in rows if r["case"] == case and r["variant"] == variant and r["status"] == "timed"), None
    )


def _target(what: str, value: float | None, low: float | None = None, high: float | None = None) -> Target:
    bound = f"at least {low:g}" if low is not None else f"at most {high:g}"
    met = value is not None and (value >= low if low is not None else value <= (high or 0))
    return Target(what, bound, value, met)


def _over(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def targets(rows: list[Row]) -> list[Target]:
    """Those of the device that the rows are from."""
    fast = next((r["variant"] for r in rows if is_fast(r)), "")
    first = {op: next((r for r in rows if r["op"] == op and r["status"] == "timed"), None) for op in
             ("grpo_loss", "linear_grpo_loss", "box_iou")}  # fmt: skip
    out: list[Target] = []
    for dtype in ("fp32", "bf16"):
        out += _grpo_loss(rows, fast, dtype)
    if first["linear_grpo_loss"]:
        out += _linear(rows, fast, first["linear_grpo_loss"]["case"])
    if first["box_iou"]:
        case = first["box_iou"]["case"]
        ratio = _over(_median(rows, case, "python loop"), _median(rows, case, fast))
        out.append(_target("box_iou: times faster than a Python loop", ratio, low=50))
    return out


PEERS = ("eager log_softmax", "eager logsumexp", "torch.compile", "trl selective_log_softmax", "liger triton")


def _grpo_loss(rows: list[Row], fast: str, dtype: str) -> list[Target]:
    row = next((r for r in rows if r["op"] == "grpo_loss" and r["dtype"] == dtype and is_fast(r)), None)
    if row is None:
        return []
    case, own = row["case"], row["wall_p50_s"]
    eager = [t for t in (_median(rows, case, name) for name in PEERS[:2]) if t]
    best = [t for t in (_median(rows, case, name) for name in PEERS) if t]
    if "triton" in fast:
        copy = row["floor_bytes"] / row["ceiling_copy_bytes_per_s"]
        return [
            _target(f"{case}: time over that of moving its bytes", own / copy, high=1.25),
            _target(f"{case}: times faster than the best peer", _over(min(best, default=None), own), low=1.4),
        ]
    return [
        _target(
            f"{case}: times faster than eager torch, the faster of two", _over(min(eager, default=None), own), low=4
        ),
        _target(f"{case}: extra memory over the logits", row["extra_bytes"] / row["avoided_bytes"], high=0.02),
    ]


def _linear(rows: list[Row], fast: str, case: str) -> list[Target]:
    gpu = "triton" in fast
    three, two = (_median(rows, case, f"{n} products") for n in ("three", "two"))
    dense, half, frozen = (_median(rows, case, fast + tail) for tail in ("", ", half active", ", frozen head"))
    extra, logits = (_median(rows, case, fast, key) for key in ("extra_bytes", "avoided_bytes"))
    out = [
        _target(f"{case}: time over three bare products", _over(dense, three), high=1.10 if gpu else 1.05),
        _target(f"{case}: half of the rows inactive, over dense", _over(half, dense), high=0.70),
    ]
    if gpu:
        return [*out, _target(f"{case}: frozen head over two bare products", _over(frozen, two), high=1.10)]
    return [*out, _target(f"{case}: extra memory over the logits it avoids", _over(extra, logits), high=0.10)]


def text(rows: list[Row]) -> str:
    return "\n".join(["targets:", *(f"  {t.text()}" for t in targets(rows))])
