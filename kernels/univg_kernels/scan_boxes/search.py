"""Boxes wherever they stand: the lenient reader, and those of the two evaluation scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .pieces import BOX, IMAGE_KEYS, SPACE, D, Found, N, P, four, index

LEGACY = [  # in the order of the evaluation scripts: the first pattern that is found anywhere decides
    BOX,
    re.compile(rf"\[{P},\s*+{P},\s*+{P},\s*+{P}\]"),
    re.compile(rf"\({P},{P}\),\({P},{P}\)"),
    re.compile(rf"\({P},\s*+{P},\s*+{P},\s*+{P}\)"),
    re.compile(rf"\[{D},\s*+{D},\s*+{D},\s*+{D}\]"),
    re.compile(rf"<box>{D}\s++{D}\s++{D}\s++{D}</box>"),
]
FRACTIONS = LEGACY[1:4]  # int() refuses what these find, and UniVG-R1 goes on with zeros
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def _any_case(*words: str) -> str:
    # Not (?i): that takes the long s for an s.
    return "|".join("".join(f"[{c}{c.upper()}]" for c in word) for word in words)


NOUN = _any_case("image", "picture", "photo", "frame")
START, STOP = r"(?<![A-Za-z_\d])", r"(?![A-Za-z_\d])"  # \d knows more digits than 0-9
MENTION = (
    rf"{START}(?:(?P<word>{_any_case(*ORDINALS)})|(?P<nth>\d{{1,3}}+)(?:st|nd|rd|th))[{SPACE}\-](?:{NOUN}){STOP}"
    rf"|{START}(?:{NOUN})[{SPACE}\-_#]?+(?P<number>\d{{1,3}}+){STOP}"
)
INSIDE = r'(?:[^"\\<]|\\[^<]|\\?+<(?!/?+(?:think|answer)>))'  # of a label in quotes, which reaches over no tag
# Each begins with a character of its own, so that a search skips to the next one of those; empty groups name the kind.
MARKS = (
    rf"\(\s*+{N}\s*+,\s*+{N}\s*+(?:\)\s*+,?+\s*+\(\s*+{N}\s*+,\s*+{N}|,\s*+{N}\s*+,\s*+{N})\s*+\)"
    rf"|\[\s*+{N}\s*+,\s*+{N}\s*+,\s*+{N}\s*+,\s*+{N}\s*+\]"
    rf"|<box>\s*+{N}[\s,]++{N}[\s,]++{N}[\s,]++{N}\s*+</box>"
    rf"|<\|object_ref_start\|>(?P<ref>[^<]*+)<\|object_ref_end\|>"
    rf'|"(?:{"|".join(IMAGE_KEYS)})"\s*+:\s*+"?+(?:[Ii]mage[{SPACE}\-_#]?+)?+(?P<image>\d{{1,3}}+)(?!\d)'
    rf'|"label"\s*+:\s*+"(?P<label>{INSIDE}*+)"|\{{(?P<open>)|\}}(?P<close>)|<(?:/think|answer)>(?P<begins>)'
)
ANY = re.compile(f"{MARKS}|{MENTION}", re.DOTALL)


def lenient(text: str, style: str, cot: bool) -> list[Found]:
    start, end = text.rfind("<answer>"), len(text)
    if start >= 0:
        start += len("<answer>")
        closed = text.find("</answer>", start)
        end = closed if closed >= 0 else end
    else:
        thought = text.rfind("</think>")
        start = thought + len("</think>") if thought >= 0 else 0
    named, label, opened = -1, None, None  # what was last said, and the first box of the object that is open
    found: list[Found] = []
    its_image, its_label = -1, None
    for match in ANY.finditer(text, start, end):
        kind, numbers = match.lastgroup, [g for g in match.groups()[:14] if g is not None]
        if kind is None:
            found.append(Found(four(numbers), named, label))
        elif kind == "ref":
            label = match["ref"] or None
        elif kind == "image":
            its_image = index(match["image"])
        elif kind == "label":
            its_label = match["label"]
        elif kind == "open":
            opened, its_image, its_label = len(found), -1, None
        elif kind == "close" and opened is not None:
            for i in range(opened, len(found)):
                told = found[i]
                image = its_image if its_image != -1 else told.image
                found[i] = told._replace(image=image, label=told.label if its_label is None else its_label)
            opened = None
        elif kind == "begins":
            named = -1
        elif kind in ("word", "nth", "number"):
            named = _mentioned(match)
    return found


def _mentioned(match: re.Match[str]) -> int:
    if match["word"]:
        return ORDINALS.index(match["word"].lower())
    return index(match["nth"] or match["number"])


def legacy(text: str) -> Iterator[tuple[re.Pattern[str], re.Match[str]]]:
    """The pattern that decides, and where it is found first."""
    return ((pattern, match) for pattern in LEGACY if (match := pattern.search(text)))


def univg_r1_eval(text: str, style: str, cot: bool) -> list[Found]:
    return [Found(four(match.groups())) for pattern, match in list(legacy(text))[:1] if pattern not in FRACTIONS]


def migician(text: str, style: str, cot: bool) -> list[Found]:
    """Values below 1 are fractions, all others thousandths."""
    boxes = [four(match.groups()) for _, match in list(legacy(text))[:1]]
    return [Found(tuple(x if x >= 1 else x * 1000 for x in box)) for box in boxes]  # type: ignore[arg-type]
