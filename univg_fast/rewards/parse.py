r"""What a completion says: is its form right, and which box does it answer with?

Both rules are UniVG-R1's, to the letter:
- form: `<think>...</think>`, white space, `<answer>(d,d),(d,d)</answer>`, and the text ends. Anything may
  stand before; inside <answer>, white space may follow a comma and stand nowhere else.
- box: the first `(d,d),(d,d)` inside the first `<answer>...</answer>`; other text may surround it.
Both take time linear in the text.
"""

from __future__ import annotations

import re

from univg_fast.structs import Box

BOX = re.compile(r"\((\d+),\s*(\d+)\),\s*\((\d+),\s*(\d+)\)")
END = re.compile(r"</think>\s*<answer>\(\d+,\s*\d+\),\s*\(\d+,\s*\d+\)</answer>\n?\Z")
DIGITS = 9  # longer numbers are read as 10^9, which no image has: the IoU changes by less than 1e-12


def has_format(text: str, cot: bool = True) -> bool:
    """UniVG-R1's format rule; with cot=False a box anywhere in the text is enough."""
    if not cot:
        return BOX.search(text) is not None
    return "<think>" in text and END.search(text) is not None  # END holds no <think>: it stands before


def answer_box(text: str, cot: bool = True) -> Box | None:
    """The box of the first <answer> (cot=False: of the text), or None. It may be inverted or exceed 1000."""
    if cot:
        start = text.find("<answer>")
        end = text.find("</answer>", start + len("<answer>")) if start >= 0 else -1
        if end < 0:
            return None
        text = text[start + len("<answer>") : end]
    found = BOX.search(text)
    if found is None:
        return None
    x1, y1, x2, y2 = (int(number) if len(number) <= DIGITS else 10**DIGITS for number in found.groups())
    return x1, y1, x2, y2
