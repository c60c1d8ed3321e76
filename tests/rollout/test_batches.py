"""Which prompts are prefilled together, and which decode together."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from univg_fast.rollout.batches import PREFILL_TOKENS, Footprint, plan_batches, prefill_rows


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 100), max_size=20),
    st.builds(Footprint, st.integers(1, 4), st.integers(0, 4), st.integers(0, 200)),
    st.integers(0, 2000),
)
def test_planned_batches_hold_every_prompt_and_no_more_than_fits(
    lengths: list[int], footprint: Footprint, room: int
) -> None:
    planned = plan_batches(lengths, footprint, room)
    assert sorted(i for batch in planned for i in batch) == list(range(len(lengths)))
    for batch in planned:
        assert len(batch) == 1 or footprint.bytes(max(lengths[i] for i in batch), len(batch)) <= room


@given(st.lists(st.integers(1, 2 * PREFILL_TOKENS), max_size=20))
def test_rows_of_the_prefill_hold_every_prompt_and_no_more_than_is_counted(lengths: list[int]) -> None:
    rows = prefill_rows(lengths)
    assert [i for row in rows for i in row] == list(range(len(lengths)))
    passing = Footprint(kept=0, passing=1, rows=0)
    for row in rows:
        assert sum(lengths[i] for i in row) <= passing.bytes(max(lengths), len(lengths))
        assert len(row) == 1 or sum(lengths[i] for i in row) <= PREFILL_TOKENS


def test_as_many_prompts_decode_together_as_their_keys_values_and_logits_allow() -> None:
    """Of Qwen2-VL-7B in bfloat16, 8 answers of 256 tokens: the prefill's row is no more than the answers take later."""
    kept, prompt, room = 2 * 28 * 4 * 128 * 2, 2208, 8 * 2**30
    footprint = Footprint(kept, (2 * 3584 + 4 * 18944) * 2, 8 * (256 * kept + 152_064 * 16))
    planned = plan_batches([prompt] * 64, footprint, room)
    assert [len(batch) for batch in planned[:-1]] == [room // (prompt * kept + footprint.rows)] * (len(planned) - 1)
