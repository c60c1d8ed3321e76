"""Boxes where answers have to have them: UniVG-R1's form and box, and the strict answer of each style."""

from __future__ import annotations

import re

from .pieces import BOX, IMAGE_KEYS, PAIR, SPACE, Found, N, four, index

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
END = re.compile(rf"</think>\s*+<answer>{PAIR}</answer>\n?+\Z")
NAMED = r"(?:Image-(\d{1,3}+):?+\s*+)?+"
LINE = re.compile(rf"{NAMED}(){PAIR}[\s,;]*+")
TOKEN_LINE = re.compile(
    rf"{NAMED}(?:<\|object_ref_start\|>([^<]*+)<\|object_ref_end\|>\s*+)?+"
    rf"(?:{PAIR}|<\|box_start\|>{PAIR}<\|box_end\|>)[\s,;]*+"
)
STRING = r'"((?:[^"\\]|\\.)*+)"'
FIELD = re.compile(rf'{STRING}\s*+:\s*+(?:{STRING}|\[([^\[\]"{{}}]*+)\]|([^\s,\[\]{{}}"]++))\s*+', re.DOTALL)
SCALAR = re.compile(rf"{N}|true|false|null")
FOUR = re.compile(rf"\s*+{N}\s*+,\s*+{N}\s*+,\s*+{N}\s*+,\s*+{N}\s*+")
IMAGE = re.compile(rf"(?:[Ii]mage[{SPACE}\-_#]?+)?+(\d{{1,3}}+)")


def has_format(text: str, cot: bool = True) -> bool:
    """UniVG-R1's format rule; with cot=False a box anywhere in the text is enough."""
    if not cot:
        return BOX.search(text) is not None
    return "<think>" in text and END.search(text) is not None  # END holds no <think>: it stands before


def tags_in_order(text: str) -> int:
    """How many of the four tags stand once, and behind those before them that do."""
    count, last = 0, -1
    for tag in TAGS:
        at = text.find(tag)
        if at > last and text.find(tag, at + 1) < 0:
            count, last = count + 1, at
    return count


def strict_form(text: str, style: str, cot: bool) -> bool:
    text = text.strip()
    if not cot:
        tagged = text.startswith("<answer>") and text.endswith("</answer>")
        return "<think>" not in text and "</think>" not in text and bool(strict(text, style, cot)) and (
            tagged or "<answer>" not in text)  # fmt: skip
    whole = text.startswith("<think>") and text.endswith("</answer>") and tags_in_order(text) == 4
    between = text[text.find("</think>") + len("</think>") : text.find("<answer>")]
    return whole and not between.strip() and bool(strict(text, style, cot))


def strict(text: str, style: str, cot: bool) -> list[Found]:
    """Of the only <answer>…</answer>, if it holds nothing but boxes; without cot of the text where it has no tags."""
    if cot or "<answer>" in text or "</answer>" in text:
        start, end = text.find("<answer>"), text.find("</answer>")
        if start < 0 or end < start or text.find("<answer>", start + 1) >= 0 or text.find("</answer>", end + 1) >= 0:
            return []
        text = text[start + len("<answer>") : end]
    return objects(text.strip()) if style == "bbox_2d" else lines(text, style)


def lines(body: str, style: str) -> list[Found]:
    """`(x1,y1),(x2,y2)` one behind the other, each with `Image-k:` before it or not; in box_tokens also a label."""
    pattern, found, at = LINE if style == "univg_r1" else TOKEN_LINE, [], len(body) - len(body.lstrip())
    while at < len(body):
        match = pattern.match(body, at)
        if match is None:
            return []
        found.append(Found(four(match.groups()[2:]), index(match[1]), match[2] or None))
        at = match.end()
    return found


def objects(body: str) -> list[Found]:
    """A JSON list of flat objects that have "bbox_2d", or one object; in a ``` fence or not."""
    if body.startswith("```"):
        body = body.removesuffix("```").removeprefix("```json").removeprefix("```").strip()
    many = body.startswith("[")
    if many:
        if not body.endswith("]"):
            return []
        body = body[1:-1].strip()
    found: list[Found] = []
    at = 0
    while True:
        one = _object(body, at)
        if one is None:
            return []
        found.append(one[0])
        at = _skip(body, one[1])
        if at == len(body):
            return found if many or len(found) == 1 else []
        if not many or body[at] != ",":
            return []
        at = _skip(body, at + 1)


BLANK = re.compile(r"\s*+")


def _skip(body: str, at: int) -> int:
    match = BLANK.match(body, at)
    return match.end() if match else at


def _object(body: str, at: int) -> tuple[Found, int] | None:
    """The object that begins at a place, and where it ends."""
    if body[at : at + 1] != "{":
        return None
    box, image, label = None, -1, None
    at = _skip(body, at + 1)
    while True:
        field = FIELD.match(body, at)
        if field is None:
            return None
        key, text, array, scalar = field.groups()
        if scalar is not None and not SCALAR.fullmatch(scalar):
            return None
        if key == "bbox_2d":
            numbers = FOUR.fullmatch(array or "")
            if numbers is None:
                return None
            box = four(numbers.groups())
        elif key in IMAGE_KEYS:
            named = IMAGE.fullmatch(text if text is not None else scalar or "")
            image = index(named[1]) if named else -1
        elif key == "label" and text is not None:
            label = text
        at = field.end()
        if body[at : at + 1] == "}":
            return None if box is None else (Found(box, image, label), at + 1)
        if body[at : at + 1] != ",":
            return None
        at = _skip(body, at + 1)


def univg_r1(text: str, style: str, cot: bool) -> list[Found]:
    if style != "univg_r1":
        return strict(text, style, cot)
    if cot:
        start = text.find("<answer>")
        end = text.find("</answer>", start + len("<answer>")) if start >= 0 else -1
        if end < 0:
            return []
        text = text[start + len("<answer>") : end]
    match = BOX.search(text)
    return [Found(four(match.groups()))] if match else []
