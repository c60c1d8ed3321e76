"""Completions to fuzz with: pieces of answers put together at random, answers damaged, and hostile repetition."""

from __future__ import annotations

import random
from collections.abc import Iterator

PIECES = (
    "<think>", "</think>", "<answer>", "</answer>", "<box>", "</box>", "<|box_start|>", "<|box_end|>",
    "<|object_ref_start|>", "<|object_ref_end|>", "(100,200),(300,400)", "(1, 2),\n(3,4)", "(1 ,2),(3,4)",
    "(-1,2),(3,4)", "(0.1,0.2),(0.3,0.4)", "(0.1, 0.2, 0.3, 0.4)", "[1, 2, 3, 4]", "[0.1,0.2,0.3,0.4]",
    "[[1,2],[3,4]]", "1 2 3 4", "(1,2,3,4)", "( 1 , 2 ) ( 3 , 4 )", "[", "]", "(", ")", "{", "}", ",", ":",
    ";", '"', "\\", "\\\"", "\n", " ", "\t", "\x1c", "\x85", "\u3000", "٣", "１２", "é", "中", "\ud800", "\x00",
    "\u00a0", "\u2028", "２", "०", "𝟏", "²", "½",
    "ſ", "ﬁ", "İ", "-", ".", "0", "7", "00042", "99999999999999999999", "1.5", "1e5", "Image-1", "Image-2: ", "image 3",
    "the second image", "3rd picture", "First Frame", "10th photo", "image_2", "Image-1234",
    '"bbox_2d": [1, 2, 3, 4]', '"bbox_2d"', '"label": "cat"', '"label": "a\\"b"', '"image": 2',
    '"img_idx": "Image-3"', '"image": 0', '{"bbox_2d": [10, 20, 30.5, 40], "label": "dog", "image": 2}',
    "```json", "```", "true", "null", "a", "box",
)  # fmt: skip
GOOD = (
    "<think>a</think>\n<answer>(100,200),(300,400)</answer>",
    "<think>in Image-2 there is one</think><answer>Image-2: (1,2),(3,4)\nImage-1: (5, 6),(7,8)</answer>",
    '<think>x</think> <answer>[{"bbox_2d": [1,2,3,4], "label": "cat", "image": 1}, {"bbox_2d": [5,6,7,8]}]</answer>',
    '<think>x</think><answer>```json\n{"image": "Image-2", "bbox_2d": [1, 2, 3, 4]}\n```</answer>',
    "<think>x</think><answer><|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|></answer>",
    "It is in the third image. <|box_start|>(316,58),(764,999)<|box_end|>",
    "(100,200),(300,400)",
    "<box>826 704 993 984</box>",
    "[0.3, 0.2, 0.4, 0.28] and then [28, 586, 362, 793]",
)
# Each is repeated to any length: a scanner that goes back takes quadratic time on one of them.
HOSTILE = (
    "<think>", "</think>", "</think> ", "<answer>", "</answer>", "<answer></answer>", "(", "((1,", "(1,2),(",
    "(1,2),(3,4", "1", "(1", "[1,2,3,", "[[", "<", "<box>", "<box>1 2 3 ", "<|object_ref_start|>",
    "<|object_ref_start|>a", "<|box_start|>(1,2),", '"', '"label":"', '"label":"\\', '"label": ', "\\\"", '{"',
    '{"bbox_2d":[1,2,3,4]},', '{"a":', "{", "}", "{(1,2),(3,4)", "{(1,2),(3,4)}", "image", "Image-1",
    "second ", "10th ", "1st image ", "(1,2),(3,4)", "Image-1: (1,2),(3,4)\n", " ", "\n", "é", "\ud800", "１",
    "(0.1,", "(0.1,0.2),(0.3,0.", "(1.", "</think><answer>(1,2),(3,4)</answer> ", "```", "```json",
)  # fmt: skip


def completions(seed: int) -> Iterator[str]:
    """Without end, the same for the same seed."""
    draw = random.Random(seed)
    while True:
        kind = draw.random()
        if kind < 0.45:
            yield "".join(draw.choices(PIECES, k=draw.randrange(1, 24)))
        elif kind < 0.85:
            yield _damaged(draw.choice(GOOD), draw)
        elif kind < 0.95:
            body = "".join(draw.choices(PIECES, k=draw.randrange(1, 8)))
            yield f"<think>{draw.choice(PIECES)}</think>\n<answer>{body}</answer>"
        else:
            yield draw.choice(HOSTILE) * draw.randrange(1, 40) + draw.choice(GOOD)


def _damaged(text: str, draw: random.Random) -> str:
    for _ in range(draw.randrange(0, 4)):
        at, length = draw.randrange(len(text) + 1), draw.randrange(0, 6)
        text = text[:at] + (draw.choice(PIECES) if draw.random() < 0.6 else "") + text[at + length :]
    return text


def long_texts(length: int) -> Iterator[tuple[str, str]]:
    """(what is repeated, about `length` characters of it), bare and inside an answer."""
    for piece in HOSTILE:
        many = piece * (length // len(piece))
        yield piece, many
        yield f"answer {piece}", f"<think>a</think><answer>{many}"
        yield f"closed {piece}", f"<think>a</think><answer>{many}</answer>"
        yield f"list {piece}", f'<think>a</think><answer>[{{"label": "a", "bbox_2d": [1,2,3,4]}},{many}]</answer>'
