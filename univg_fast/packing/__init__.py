"""Packing: whole groups into rows under a token budget, and every index tensor of a row, made on the host."""

from univg_fast.packing.plan import GroupSize, plan_rows
from univg_fast.packing.rows import Row, build_row

__all__ = ["GroupSize", "Row", "build_row", "plan_rows"]
