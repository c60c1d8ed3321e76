"""What is no model FLOP in a step, counted: bytes of a layer's small operations, and those that DeepSpeed moves.

tests/bench/test_scale_counts.py counts them again, operation by operation, in passes and steps that are made.
"""

from __future__ import annotations

from typing import NamedTuple


class Pass(NamedTuple):
    """A decoder layer's work in one direction, each operation by itself as transformers' modules do it."""

    products: float  # times a forward pass's
    attention: float  # backward: five products of a pair, where forward has two
    hidden: int  # numbers a token, read or written by norms, rotation, gate and sums: x hidden
    intermediate: int  # and x intermediate
    calls: int  # operations


FORWARD = Pass(products=1, attention=1, hidden=38, intermediate=5, calls=41)
BACKWARD = Pass(products=2, attention=2.5, hidden=93, intermediate=9, calls=82)


class Moved(NamedTuple):
    """Bytes of a trained parameter that DeepSpeed reads and writes on a rank, beside what collectives do."""

    step: float  # in an optimizer step, of all parameters
    share: float  # of the rank's share: divided by the number of ranks
    mean: float  # of all, where there are several ranks and their sum is divided
    row: float  # in a row's backward pass, of all parameters
    row_share: float

    @property
    def text(self) -> tuple[str, str]:
        """Of a step and of a row, on n ranks."""
        return _sum(self.step, self.share), _sum(self.row, self.row_share)


def _sum(whole: float, share: float) -> str:
    return " + ".join([f"{whole:g}"] * (whole > 0) + [f"{share:g} / n"] * (share > 0))


# By ZeRO stage, with torch's fused AdamW (28: gradient read, weight and two moments there and back).
MOVED = {
    # fp32. Gradients flattened 8, copied back 8, norm 4, clipping 8, AdamW. A row after the first is added to the sums.
    0: Moved(step=56, share=0, mean=8, row=12, row_share=0),
    # bf16 with fp32 sums, as all below. Sums flattened 8, norm 4, clipping 8, zeroed 8; of the share AdamW and the
    # weights to bf16 6. A row: to fp32 6, added to the sums 12.
    1: Moved(step=28, share=34, mean=8, row=18, row_share=0),
    # Checked 8, cast 12, norm 8, clipping 8, AdamW, weights to bf16 6. A row: into a bucket and divided 12; of the
    # share out of it 4, to fp32 6, added 12.
    2: Moved(step=0, share=70, mean=0, row=12, row_share=22),
    # Cast 12, norm 8, flattened 8, clipping 8, AdamW, weights 6; a row as at stage 2.
    3: Moved(step=0, share=70, mean=0, row=12, row_share=22),
}
