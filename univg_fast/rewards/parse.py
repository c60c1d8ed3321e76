r"""What a completion says: is its form right, and which box does it answer with?

The rules are UniVG-R1's to the letter. Form: `<think>.*?</think>\s*<answer>(d, d),(d, d)</answer>` at the very end, where
blanks may follow the comma inside a bracket and may surround the comma between brackets only behind it; anything may
precede <think>. Box: inside the first <answer>...</answer>, the first `(d, d), (d, d)`. Everything is linear in the text.
"""

from __future__ import annotations

import re

from univg_fast.structs import Box

BOX = re.compile(r"\((\d+),\s*(\d+)\),\s*\((\d+),\s*(\d+)\)")
END = re.compile(r"</think>\s*<answer>\(\d+,\s*\d+\),\s*\(\d+,\s*\d+\)</answer>\n?\Z")
DIGITS = 9  # longer numbers are read as 10^9: no box of an image, and an IoU that differs from the true one by < 1e-12


def has_format(text: str, cot: bool = True) -> bool:
    """UniVG-R1's format rule; with cot=False a box anywhere in the text is enough."""
    if not cot:
        return BOX.search(text) is not None
    end = END.search(text)
    return end is not None and text.find("<think>", 0, end.start()) >= 0


def answer_box(text: str, cot: bool = True) -> Box | None:
    """The box of the first <answer> (with cot=False: of the whole text), or None. It may be inverted or exceed 1000."""
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
