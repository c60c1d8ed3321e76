"""Which prompts are prefilled together and which are decoded together, by what they take of the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from univg_fast.model.packed import PackedModel
from univg_fast.rollout.sampling import Sampling

PREFILL_TOKENS = 8192  # of a row of prompts: longer ones only take memory, as arithmetic is the limit long before


@dataclass(frozen=True)
class Footprint:
    """Bytes that prompts with their rows take in a batch."""

    kept: int  # a token's keys and values
    passing: int  # a prompt's token in the prefill, beside them
    rows: int  # of all of a prompt's rows: own keys and values, logits and what sampling makes of them

    @classmethod
    def of(cls, packed: PackedModel, group: int, sampling: Sampling, looks: bool) -> Footprint:
        """`looks`: the vision tower sees the prompts' images in the prefill; a prompt's tokens may all be theirs."""
        model, family = packed.model, packed.family
        text = model.config.get_text_config()
        dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        kept = 2 * text.num_hidden_layers * text.num_key_value_heads * dim * model.dtype.itemsize
        # a layer of the language model at its widest: the residual, its norm, and four of the MLP's width
        passing = (2 * text.hidden_size + 4 * text.intermediate_size) * model.dtype.itemsize
        if looks:  # a block of the tower, of the patches of a token; before that layer
            block = (8 * family.tower.width + 2 * family.tower.intermediate) * model.dtype.itemsize
            passing = max(passing, family.merge_size**2 * (family.patch_dim * 4 + block))
        return cls(kept, passing, group * (sampling.max_new_tokens * kept + text.vocab_size * sampling.bytes_per_logit))

    def bytes(self, prompt: int, count: int) -> int:
        """Of `count` prompts padded to `prompt` tokens each.

        The prefill has one row at a time in passing, and none when the rows of generations begin.
        """
        row = min(count * prompt, max(PREFILL_TOKENS, prompt))
        return count * prompt * self.kept + max(row * self.passing, count * self.rows)


def plan_batches(lengths: Sequence[int], footprint: Footprint, room: int) -> list[list[int]]:
    """Prompts to decode together, by index, so that a batch takes at most `room` bytes, but for one of a single prompt.

    The caches are padded to the longest prompt, so prompts of like lengths go together, the longest first.
    """
    batches: list[list[int]] = []
    longest = 0  # of the present batch
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or footprint.bytes(longest, len(batches[-1]) + 1) > room:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return [sorted(batch) for batch in batches]


def prefill_rows(lengths: Sequence[int]) -> list[list[int]]:
    """A batch's prompts by index, in order, in rows of at most PREFILL_TOKENS; a longer prompt is a row of its own."""
    rows: list[list[int]] = []
    tokens = 0  # of the present row
    for index, length in enumerate(lengths):
        if not rows or tokens + length > PREFILL_TOKENS:
            rows.append([])
            tokens = 0
        rows[-1].append(index)
        tokens += length
    return rows
