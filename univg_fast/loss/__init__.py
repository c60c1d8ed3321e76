"""Losses as heads of a packed row: (hidden [N, H], weight [V, H]) -> loss and what is logged beside it."""

from univg_fast.loss.grpo import grpo_head, logprob_head
from univg_fast.loss.sft import sft_head

__all__ = ["grpo_head", "logprob_head", "sft_head"]
