"""How often the fused Triton kernel reads a logit: in its PTX, and in the interpreter."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is published for Linux only")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

from bench.loads import KINDS, Sweep, compile_kernel, count_reads, find_sweeps  # noqa: E402
from bench.loads_text import loads_section, loads_text  # noqa: E402
from bench.shapes import QWEN2_7B  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PTX = """
	@%p1 ld.global.v4.b32 { %r1 }, [ %rd1 + 0 ];
$L__BB0_2:
	ld.global.b64 { %rd23 }, [ %rd24 + 0 ];
	@%p10 bra 	$L__BB0_2;
$L__BB0_4:
	@%p12 ld.global.v4.b32 { %r57 }, [ %rd34 + 0 ];
	@%p13 ld.global.v4.b32 { %r61 }, [ %rd35 + 0 ];
	bra.uni 	$L__BB0_4;
	ld.global.v4.b32 { %r57 }, [ %rd34 + 0 ];
	@%p12 bra 	$L__BB0_6;
$L__BB0_6:
"""


def test_loads_are_told_apart_by_the_loop_they_stand_in() -> None:
    assert find_sweeps(PTX) == (Sweep(1, 2), Sweep(1, 0))


def test_each_sweep_of_the_compiled_kernel_loads_a_tile_at_a_time() -> None:
    compiled = compile_kernel(90, QWEN2_7B)
    loads_of_a_tile = compiled.tile_bytes // (16 * 32 * compiled.warps)
    assert compiled.sweeps == (Sweep(loads_of_a_tile, loads_of_a_tile),) * 2
    assert compiled.spilled == 0 and compiled.rows_at_once == 1


def test_a_logit_is_read_once_a_sweep() -> None:
    with_gradient, without, masked = KINDS
    assert count_reads(vocab=700) == {with_gradient: ([2], 3), without: ([1], 2), masked: ([0], 0)}


def test_the_document_says_so() -> None:
    """But for the registers, which a change of the kernel or of the compiler may move: `python -m bench.report`."""

    def shape(text: str) -> str:
        return re.sub(r"(\| sm_\d+ \([^|]+\)) \| \d+", r"\1 | some", text)

    assert shape(loads_section()) in shape((ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8"))


def test_a_kernel_that_is_another_one_needs_another_text() -> None:
    compiled = compile_kernel(90, QWEN2_7B)
    with pytest.raises(ValueError, match="write it anew"):
        loads_text([compiled], {KINDS[0]: ([3], 3)}, QWEN2_7B)
