"""The section of docs/benchmarks.md about reads of logits: words around what `bench.loads` finds."""

from __future__ import annotations

from .loads import KINDS, Compiled, Reads, compile_kernel, count_reads
from .shapes import QWEN2_7B

# (multiprocessors, MB of L2 cache) as NVIDIA's documents have them, for the chips that the kernels are compiled for.
CHIPS = {80: ("A100", 108, 40), 90: ("H100, H200", 132, 50), 100: ("B200", 148, 126)}

TEXT = """## How often the fused kernel reads a logit

`grpo_loss` in Triton takes a row from its logits to its gradient in one launch: a sweep for the log-sum-exp and the
entropy, the loss of the row, a sweep that overwrites the logits with their gradient. Counted, not timed, by
`python -m bench.report` as it makes this page:

**In the compiled code** (PTX for V = {vocab}, bf16; `bench/loads.py` reads it). Each sweep has {before} wide loads of
16 bytes in front of its loop and {inside} in it: a tile of {tile} KiB each time, {threads} threads, one tile ahead of
the arithmetic. A row of {row} KiB is {tiles} tiles, so each sweep asks for every logit once; the tile that the last
pass asks for lies beyond the row and is masked off. No spills, so nothing else of a row's size goes to memory.

| | registers of a thread | bytes spilled | rows at once on a multiprocessor | rows on the chip | of its L2 cache |
|---|---|---|---|---|---|
{chips}

**In the interpreter**, where every address that is asked for can be counted:

| row | reads of a logit | reads of the target's logit |
|---|---|---|
{reads}

So a row with a gradient is asked for twice and written once: 6 bytes of every bf16 logit cross between the
multiprocessors and the L2 cache, and 4 of them need cross between L2 and memory **if the second sweep finds the row
in L2**. Three things are made so that it does: more than 32 registers on {threads} threads leave a multiprocessor
room for one row at a time; the rows in flight on the whole chip are smaller than its L2 cache; and the second sweep
runs from the end of the row to its beginning, where the first one has just been. The store of the gradient goes to
the line that the sweep has just read.

**What is not measured.** Whether it does. The L2 cache of these chips is built in two halves, and a line that is
asked for from the far half may lie in both, which would make less of it than its size says; what replaces what is not
documented; and rows of neighbours start and end at different times. If nothing were found there, the traffic would be
6·N·V bytes instead of 4·N·V, as in kernels with a launch for each direction. On a GPU, "of copy" of the `grpo_loss`
cases tells: its floor is 4·N·V bytes.

Losses whose rows depend on each other (sequence level, gmpo, vespo) need all log-probabilities of a response before
the first gradient: they take a launch for each sweep, and the second one reads from memory, 6·N·V bytes.

The CUDA C++ face (`backend="cuda"`, sm_90 and above, where the library is built with nvcc) is written to need no second
read at all: a cluster of thread blocks holds the row on chip. It is not counted here: nvcc is not at hand everywhere.
"""


def loads_section() -> str:
    return loads_text([compile_kernel(capability, QWEN2_7B) for capability in CHIPS], count_reads(), QWEN2_7B)


def loads_text(compiled: list[Compiled], reads: Reads, vocab: int) -> str:
    (first, *_) = compiled
    alike = {(c.sweeps, c.tile_bytes, c.warps, c.spilled, c.rows_at_once) for c in compiled}
    if len(first.sweeps) != 2 or alike != {(first.sweeps, first.tile_bytes, first.warps, 0, 1)}:
        raise ValueError(f"the kernel is no longer what this text says: {compiled}; write it anew")
    if reads[KINDS[0]] != ([2], 3):
        raise ValueError(f"a row is not read once a sweep, as this text says: {reads}; write it anew")
    sweep = first.sweeps[0]
    row_bytes = 2 * vocab
    return TEXT.format(
        vocab=vocab, before=sweep.before, inside=sweep.inside, tile=first.tile_bytes // 1024, threads=first.warps * 32,
        row=round(row_bytes / 1024), tiles=-(-row_bytes // first.tile_bytes),
        chips="\n".join(_chip(c, row_bytes) for c in compiled),
        reads="\n".join(f"| {kind} | {' or '.join(map(str, plain))} | {at} |" for kind, (plain, at) in reads.items()),
    )  # fmt: skip


def _chip(c: Compiled, row_bytes: int) -> str:
    name, processors, cache = CHIPS[c.capability]
    held = processors * c.rows_at_once * row_bytes / 1e6
    cells = (f"sm_{c.capability} ({name})", c.registers, c.spilled, c.rows_at_once, f"{held:.0f} MB", f"{cache} MB")
    return f"| {' | '.join(str(x) for x in cells)} |"
