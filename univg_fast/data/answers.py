"""The answer in a response: where it stands, how its boxes are spelled, and whether it says anything beside them."""

from __future__ import annotations

import re

from univg_kernels.scan_boxes.pieces import BOX
from univg_kernels.scan_boxes.search import ANY

from .boxtext import boxes_in
from .errors import Refused

OBJECT = re.compile('"bbox_2d"')
TOKENS = re.compile(r"<\|box_(?:start|end)\|>|```(?:json)?+")
KEY = re.compile(r'"\w++"\s*+:')
WHERE = {"it", "s", "is", "in", "at", "the", "and"}  # MGrounding's "It's in the second image." says what a label does


def thought(response: str) -> int:
    """Where the reasoning ends; what stands before, tags included, is its own affair. 0 where there is none."""
    end = response.rfind("</think>")
    return end + len("</think>") if end >= 0 else 0


def answer_span(response: str) -> tuple[int, int] | None:
    """Where the answer begins and ends: in the <answer> after the reasoning, or all of a response without tags.

    None where there is reasoning and no <answer>. Refused where tags do not pair.
    """
    after, opened = thought(response), response.find("<think>")
    start, end = response.find("<answer>", after), response.find("</answer>", after)
    paired = (opened >= 0) == (after > 0) and opened < max(after, 1) and response.find("<think>", after) < 0
    paired &= (start < 0) == (end < 0) and start <= end
    if (
        not paired
        or response.find("<answer>", start + 1) >= 0 <= start
        or response.find("</answer>", end + 1) >= 0 <= end
    ):
        raise Refused(
            "schema",
            "the tags of the response do not pair: expected <think>…</think> or none, then one <answer>…</answer>; got "
            f"{_tail(response)}",
        )
    if start >= 0:
        return start + len("<answer>"), end
    return None if after else (0, len(response))


def style_of(response: str | None) -> str:
    """The style of a target's boxes; where it is none of the three, or there is no target, the nearest one."""
    response = response or ""
    answer = response[max(0, response.find("<answer>", thought(response))) :]
    if OBJECT.search(answer) or "<|box_start|>" in answer:
        return "bbox_2d" if OBJECT.search(answer) else "box_tokens"
    lists = not BOX.search(answer) and any(answer[box.start] == "[" for box in boxes_in(answer, 0))
    return "bbox_2d" if lists else "univg_r1"


def only_boxes(response: str) -> bool:
    """Whether the answer is boxes: outside of them nothing but images, labels, brackets and punctuation."""
    span = answer_span(response)
    body = "" if span is None else response[slice(*span)]
    if not boxes_in(body, 0):
        return False
    rest = ANY.sub(" ", TOKENS.sub(" ", body))
    return WHERE.issuperset(re.findall(r"\w+", KEY.sub(" ", rest).lower()))


def _tail(response: str) -> str:
    return repr(response if len(response) <= 120 else "…" + response[-119:])
