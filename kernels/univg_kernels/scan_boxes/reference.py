"""What completions answer: the specification, in regular expressions that never go back (possessive quantifiers)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from . import MOST_BOXES, ScannedBoxes

DIGITS = 9  # longer numbers are read as 10^9, which no image has: the IoU changes by less than 1e-12
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
D, N, P = r"(\d++)", r"(-?+\d++(?:\.\d++)?+)", r"(\d++\.\d++)"
PAIR = rf"\({D},\s*+{D}\),\s*+\({D},\s*+{D}\)"
BOX = re.compile(PAIR)
END = re.compile(rf"</think>\s*+<answer>{PAIR}</answer>\n?+\Z")
LEGACY = [  # in the order of the evaluation scripts: the first pattern that is found anywhere decides
    BOX,
    re.compile(rf"\[{P},\s*+{P},\s*+{P},\s*+{P}\]"),
    re.compile(rf"\({P},{P}\),\({P},{P}\)"),
    re.compile(rf"\({P},\s*+{P},\s*+{P},\s*+{P}\)"),
    re.compile(rf"\[{D},\s*+{D},\s*+{D},\s*+{D}\]"),
    re.compile(rf"<box>{D}\s++{D}\s++{D}\s++{D}</box>"),
]
FRACTIONS = LEGACY[1:4]  # int() refuses what these find, and UniVG-R1 goes on with zeros
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
IMAGE_KEYS = ("image", "image_id", "image_index", "image_idx", "img_idx", "img")
IMAGE = re.compile(r"(?:[Ii]mage[ \-_#]?+)?+(\d{1,3}+)")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def _any_case(*words: str) -> str:
    # Not (?i): that takes the long s for an s.
    return "|".join("".join(f"[{c}{c.upper()}]" for c in word) for word in words)


NOUN, START, STOP = _any_case("image", "picture", "photo", "frame"), "(?<![A-Za-z0-9_])", "(?![A-Za-z0-9_])"
MENTION = (
    rf"{START}(?:(?P<word>{_any_case(*ORDINALS)})|(?P<nth>\d{{1,3}}+)(?:st|nd|rd|th))[ \-](?:{NOUN}){STOP}"
    rf"|{START}(?:{NOUN})[ \-_#]?+(?P<number>\d{{1,3}}+){STOP}"
)
ANY = re.compile(
    rf"\(\s*+{N}\s*+,\s*+{N}\s*+(?:\)\s*+,?+\s*+\(\s*+{N}\s*+,\s*+{N}|,\s*+{N}\s*+,\s*+{N})\s*+\)"
    rf"|\[\s*+{N}\s*+,\s*+{N}\s*+,\s*+{N}\s*+,\s*+{N}\s*+\]"
    rf"|<box>\s*+{N}[\s,]++{N}[\s,]++{N}[\s,]++{N}\s*+</box>"
    rf"|<\|object_ref_start\|>(?P<ref>[^<]*+)<\|object_ref_end\|>"
    rf'|"(?:{"|".join(IMAGE_KEYS)})"\s*+:\s*+"?+(?:[Ii]mage[ \-_#]?+)?+(?P<image>\d{{1,3}}+)(?!\d)'
    rf'|"label"\s*+:\s*+"(?P<label>(?:[^"\\]|\\.)*+)"|(?P<open>\{{)|(?P<close>\}})|{MENTION}',
    re.DOTALL,
)
Numbers = tuple[float, float, float, float]


class Found(NamedTuple):
    """A box of a text. image: from 0, -1 where none is named."""

    box: Numbers
    image: int = -1
    label: str | None = None


def number(text: str) -> float:
    whole, _, fraction = text.removeprefix("-").partition(".")
    value = (int(whole) if len(whole) <= DIGITS else 10**DIGITS) + int(fraction[:9] or "0") / 10 ** len(fraction[:9])
    return -value if text.startswith("-") else float(value)


def four(groups: Sequence[str | None]) -> Numbers:
    x1, y1, x2, y2 = (number(group) for group in groups if group is not None)
    return x1, y1, x2, y2


def index(text: str | None) -> int:
    """0-based, -1 for none."""
    return int(text) - 1 if text else -1


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


SPACE = re.compile(r"\s*+")


def _skip(body: str, at: int) -> int:
    match = SPACE.match(body, at)
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
    for match in re.compile(MENTION).finditer(text, 0, start):
        named = _mentioned(match)
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
                image = its_image if its_image >= 0 else told.image
                found[i] = told._replace(image=image, label=told.label if its_label is None else its_label)
            opened = None
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


READ: dict[str, Callable[[str, str, bool], list[Found]]] = {
    "univg_r1": univg_r1, "strict": strict, "lenient": lenient, "univg_r1_eval": univg_r1_eval, "migician": migician,
}  # fmt: skip


def scan_boxes(texts: Sequence[str], mode: str, styles: Sequence[str], cot: Sequence[bool]) -> ScannedBoxes:
    each = list(zip(texts, styles, cot, strict=True))
    found = [READ[mode](*one) for one in each]
    counts = torch.tensor([len(boxes) for boxes in found], dtype=torch.int64)
    kept = [box for boxes in found for box in boxes[:MOST_BOXES]]
    offsets = torch.cat([counts.new_zeros(1), counts.clamp(max=MOST_BOXES).cumsum(0)])
    return ScannedBoxes(
        torch.tensor([has_format(text, think) for text, _, think in each], dtype=torch.bool),
        torch.tensor([strict_form(*one) for one in each], dtype=torch.bool),
        torch.tensor([tags_in_order(text) for text in texts], dtype=torch.int64),
        counts,
        offsets,
        torch.tensor([box.box for box in kept], dtype=torch.float64).view(-1, 4),
        torch.tensor([box.image for box in kept], dtype=torch.int64),
        [box.label for box in kept],
    )
