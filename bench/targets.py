"""The figures that the project has set itself, read off one run's rows."""

from __future__ import annotations

from typing import Any, NamedTuple

from .table import is_fast, ratio

Row = dict[str, Any]
EAGER = ("eager log_softmax", "eager logsumexp")
PEERS = (*EAGER, "torch.compile", "trl selective_log_softmax", "liger triton")


class Target(NamedTuple):
    what: str
    bound: str
    reached: float | None  # None: not in this run
    met: bool

    def text(self) -> str:
        if self.reached is None:
            return f"{self.what}: not measured in this run"
        return f"{self.what}: {self.reached:.3g} ({self.bound}) {'met' if self.met else 'MISSED'}"


def targets(rows: list[Row]) -> list[Target]:
    """Those of the device that the rows of `bench.ops` are from, as far as its cases were run."""
    rows = [r for r in rows if "op" in r]
    fast = next((r["variant"] for r in rows if is_fast(r)), "")
    first = {r["op"]: r["case"] for r in reversed(rows) if r["status"] == "timed"}
    out = [t for dtype in ("fp32", "bf16") for t in _grpo_loss(rows, fast, dtype)]
    if "linear_grpo_loss" in first:
        out += _linear(rows, fast, first["linear_grpo_loss"])
    if "box_iou" in first:
        faster = _ratio(_row(rows, first["box_iou"], "python loop"), _row(rows, first["box_iou"], fast))
        out.append(_target("box_iou: times faster than a Python loop", faster, low=50))
        faster = _ratio(_row(rows, first["box_iou"], "torch ops"), _row(rows, first["box_iou"], fast))
        out.append(_target("box_iou: times faster than plain torch ops", faster, low=3))
    if "completions" in first:
        row = _row(rows, first["completions"], fast)
        taken = None if row is None else row["cpu_p50_s"] * 1e3
        out.append(_target("10,000 completions parsed and scored: ms of one thread's CPU", taken, high=50))
        every = [r for r in rows if r["case"] == first["completions"] and r["variant"].startswith(f"{fast}, ")]
        slowest = max((r for r in every if r["status"] == "timed"), key=lambda r: r["cpu_p50_s"], default=None)
        taken = None if slowest is None else slowest["cpu_p50_s"] * 1e3
        out.append(_target("the same with any recipe or term: ms of the slowest", taken, high=50))
    return out


def text(rows: list[Row]) -> str:
    return "\n".join(["targets:", *(f"  {t.text()}" for t in targets(rows))])


def _grpo_loss(rows: list[Row], fast: str, dtype: str) -> list[Target]:
    own = next((r for r in rows if r["op"] == "grpo_loss" and r["dtype"] == dtype and is_fast(r)), None)
    if own is None:
        return []
    case = own["case"]
    faster = {name: ratio(peer, own) for name in PEERS if (peer := _row(rows, case, name))}
    eager = min((faster[name] for name in EAGER if name in faster), default=None)
    if "triton" in fast:
        copy = own["floor_bytes"] / own["ceiling_copy_bytes_per_s"]
        return [
            _target(f"{case}: time over that of moving its bytes", own["wall_p50_s"] / copy, high=1.25),
            _target(f"{case}: times faster than the best peer", min(faster.values(), default=None), low=1.4),
        ]
    return [
        _target(f"{case}: times faster than eager torch, the faster of two", eager, low=4),
        _target(f"{case}: extra memory over the logits", own["extra_bytes"] / own["avoided_bytes"], high=0.02),
    ]


def _linear(rows: list[Row], fast: str, case: str) -> list[Target]:
    gpu = "triton" in fast
    three, two = (_row(rows, case, f"{n} products") for n in ("three", "two"))
    dense, half, frozen = (_row(rows, case, fast + tail) for tail in ("", ", half active", ", frozen head"))
    out = [
        _target(f"{case}: time over three bare products", _ratio(dense, three), high=1.10 if gpu else 1.05),
        _target(f"{case}: half of the rows inactive, over dense", _ratio(half, dense), high=0.70),
    ]
    if gpu:
        return [*out, _target(f"{case}: frozen head over two bare products", _ratio(frozen, two), high=1.10)]
    extra = dense["extra_bytes"] / dense["avoided_bytes"] if dense else None
    return [*out, _target(f"{case}: extra memory over the logits it avoids", extra, high=0.10)]


def _row(rows: list[Row], case: str, variant: str) -> Row | None:
    """Of the first mode measured (on a GPU the hot one)."""
    return next((r for r in rows if (r["case"], r["variant"], r["status"]) == (case, variant, "timed")), None)


def _ratio(a: Row | None, b: Row | None) -> float | None:
    return None if a is None or b is None else ratio(a, b)


def _target(what: str, value: float | None, low: float | None = None, high: float | None = None) -> Target:
    bound = f"at least {low:g}" if low is not None else f"at most {high:g}"
    met = value is not None and (value >= low if low is not None else value <= (high or 0))
    return Target(what, bound, value, met)
