"""What is told before a run of records that its rewards cannot score."""

from __future__ import annotations

from univg_fast.rewards import unscorable
from univg_fast.structs import Record, Target

BOX = (0, 0, 100, 100)


def test_all_terms_and_all_reasons_are_told_at_once() -> None:
    """Who mends one of them should not meet the next in another run."""
    half = Record("u", "f:1", ("0", "1"), "q", (Target(BOX, 0), Target(BOX)))
    said = str(unscorable(half, ["iou", "image", "matching_gated", "image_set", "matching"], "univg_r1"))
    untold, partly, parser = said.split("; reward ")
    assert untold.startswith("reward image, image_set ") and partly.startswith("matching_gated: the file tells")
    assert parser.startswith("matching: rewards.parser=univg_r1")
    assert unscorable(half, ["iou", "matching"], "strict") is None
