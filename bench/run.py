"""One case: build, prove, time, write down."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .ceilings import Ceilings
from .device import Device
from .harness import measure, summarise
from .results import Row, write
from .shapes import DTYPES, Shape
from .verdict import failure, prove
from .work import Case, Variant, Work

FOR_TIMES = 0.4  # of a case's share, at least; what building and proving took beyond the rest, later cases lose


@dataclass(frozen=True)
class Limits:
    rounds: int  # at most
    seconds: float  # of all cases together
    without: frozenset[str] = frozenset()  # variants that are left out


def run_cases(cases: list[Case], device: Device, ceilings: Ceilings, limits: Limits) -> Iterator[list[Row]]:
    """The rows of each case, one after the other. A case has its share of the time that is left then; one that finds
    none left is named and not run."""
    end = time.monotonic() + limits.seconds
    for i, case in enumerate(cases):
        left = end - time.monotonic()
        if left <= 0:
            yield [_row(case, variant="", status="not run: out of time")]
            continue
        share = case.share / sum(c.share for c in cases[i:])
        try:
            rows = run_case(case, device, ceilings, replace(limits, seconds=left * share))
        except Exception as error:  # takes no other case with it; the command ends with 1
            traceback.print_exc()
            rows = [_row(case, variant="univg", own=True, status=failure(error))]
            device.release()
        yield rows


def run_case(case: Case, device: Device, ceilings: Ceilings, limits: Limits) -> list[Row]:
    """Variants that are wrong at the proof's shape, and peers that are not here, get a row without times."""
    start, dtype = time.monotonic(), DTYPES[case.dtype]
    verdicts = prove(_built(case, case.shape.proof(), device, limits), dtype)
    device.release()
    work = _built(case, case.shape, device, limits)
    rows = [_row(case, variant=name, status=f"absent: {reason}") for name, reason in work.absent.items()]
    for name, verdict in verdicts.items():
        if not verdict.right:
            rows.append(_row(case, variant=name, own=work.variants[name].own, status=verdict.problem))
    right = {name: v for name, v in work.variants.items() if verdicts[name].right}
    left = max(limits.seconds - (time.monotonic() - start), FOR_TIMES * limits.seconds)
    for mode in device.modes:
        prepares = {name: v.prepare for name, v in right.items()}
        samples, failures = measure(prepares, device, mode, limits.rounds, left / len(device.modes))
        for name, variant in right.items():
            if name in failures:
                rows.append(_row(case, mode=mode, variant=name, own=variant.own, status=failures[name]))
                continue
            row = _row(case, mode=mode, variant=name, own=variant.own, status="timed", **summarise(samples[name]))
            row |= {"samples_s": [round(s.seconds, 9) for s in samples[name]], "error_of_allowed": verdicts[name].error}
            rows.append(row | _derived(work, variant, row, ceilings, case.dtype))
    del work, right
    device.release()
    return rows


def _built(case: Case, shape: Shape, device: Device, limits: Limits) -> Work:
    work = case.build(shape, DTYPES[case.dtype], device)
    return replace(work, variants={k: v for k, v in work.variants.items() if k not in limits.without})


def _row(case: Case, mode: str = "", **more: Any) -> Row:
    shape = {k: v for k, v in vars(case.shape).items() if k != "dtypes"}
    return {"case": case.name, "op": case.op, "label": case.label, "dtype": case.dtype, **shape, "mode": mode, **more}


def _derived(work: Work, variant: Variant, row: Row, ceilings: Ceilings, dtype: str) -> Row:
    """Bytes, operations, and the shares of this machine's own ceilings that they come to."""
    out: Row = {
        "floor_bytes": work.floor_bytes,
        "flops": variant.flops,
        "avoided_bytes": work.avoided_bytes,
        "extra_bytes": row["peak_bytes"] - variant.result_bytes,
        "ceiling_copy_bytes_per_s": ceilings.copy,
        "ceiling_gemm_flops_per_s": ceilings.gemm[dtype],
    }
    if work.floor_bytes:
        out["copy_share"] = work.floor_bytes / row["wall_p50_s"] / ceilings.copy
    if variant.flops:
        out["gemm_share"] = variant.flops / row["wall_p50_s"] / ceilings.gemm[dtype]
    return out


def save(path: Path, rows: list[Row], origin: Row) -> None:
    """One JSON object a line, each with hardware, versions, commit and date."""
    write(path, [row | origin for row in rows])
