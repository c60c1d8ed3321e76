"""What a reward asks of records: told before a run, so that no step meets a record that it cannot score."""

from __future__ import annotations

from collections.abc import Iterable

from univg_fast.structs import Record

from .sets import UNTOLD

COMPARE = {"image", "image_set"}  # images with those of the targets, which the file must tell
NAMED = COMPARE | {"matching_gated", "matching_dual"}  # a right answer names the image of its box
SEVERAL = NAMED | {"matching", "f1", "count"}  # all boxes of an answer count


def ask_for_images(terms: Iterable[str]) -> bool:
    """Whether a right answer has to name the image of its box, so that prompts must ask for it and targets do it."""
    return not NAMED.isdisjoint(terms)


def unscorable(record: Record, terms: Iterable[str], parser: str) -> str | None:
    """Why terms cannot score a record, or not give its right answer their most, each reason with all of its terms; None
    where they can."""
    reasons: dict[str, list[str]] = {}
    for term in terms:
        if reason := _reason(record, term, parser):
            reasons.setdefault(reason, []).append(term)
    return "; ".join(f"reward {', '.join(of)}{reason}" for reason, of in reasons.items()) or None


def _reason(record: Record, term: str, parser: str) -> str | None:
    several = len(record.images) > 1
    known = sum(target.image is not None for target in record.targets)
    untold = several and known < len(record.targets)
    if term in COMPARE and untold:
        return f" {UNTOLD}"
    if term in NAMED and untold and known:  # prompts ask for all images or for none
        told = f"the file tells the images of {known} of the {len(record.targets)} targets"
        return f": {told}: write all of them into the file, or none"
    beyond = several and not untold and term in NAMED or len(record.targets) > 1 and term in SEVERAL
    if beyond and parser == "univg_r1" and record.answer_style == "univg_r1":
        return (
            ": rewards.parser=univg_r1 reads one box and no image, and the right answer here has "
            f"{len(record.targets)} of {len(record.images)} images: set rewards.parser=strict"
        )
    return None
