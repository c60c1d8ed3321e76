"""Rewards of published systems by name: what `rewards.recipe` stands for."""

from __future__ import annotations

from typing import Any, Literal, get_args

RecipeName = Literal["univg_r1", "mirg_rl", "mirg_rl_ungated", "cgc", "mg_thinker", "vlm_r1"]

# name -> the terms' weights, the parser, and the term that gives the difficulty weight its mIoU.
RECIPES: dict[str, dict[str, Any]] = {
    # arXiv 2505.14231, as its code has it: raw IoU of the first box, and the format.
    "univg_r1": {"terms": {"iou": 1.0, "format": 1.0}, "parser": "univg_r1", "difficulty_from": "iou"},
    # arXiv 2509.21788 rewards objects and images; its formulas and constants are not public. This definition is ours:
    # the IoU of a matched pair counts where both boxes lie in the same image. No image right: no object right.
    "mirg_rl": {
        "terms": {"format_strict": 1.0, "image_set": 1.0, "matching_gated": 1.0},
        "parser": "strict",
        "difficulty_from": "matching_gated",
    },
    # The same, but a box that names no image counts for the object reward as if it named the right one. Ours, too.
    "mirg_rl_ungated": {
        "terms": {"format_strict": 1.0, "image_set": 1.0, "matching": 1.0},
        "parser": "strict",
        "difficulty_from": "matching",
    },
    # arXiv 2604.22498: IoU of sets, matched within an image, and a strict structure.
    "cgc": {
        "terms": {"format_strict": 1.0, "matching_gated": 1.0},
        "parser": "strict",
        "difficulty_from": "matching_gated",
    },
    # arXiv 2609.37374: partial format, image index, dual threshold. It adds up over targets; this takes the share.
    "mg_thinker": {
        "terms": {"format_tags": 1.0, "image_set": 1.0, "matching_dual": 1.0},
        "parser": "strict",
        "difficulty_from": "matching_dual",
    },
    # arXiv 2504.07615, referring expressions: one box in one image, in the style that the record asks for.
    "vlm_r1": {"terms": {"iou": 1.0, "format": 1.0}, "parser": "strict", "difficulty_from": "iou"},
}
assert tuple(RECIPES) == get_args(RecipeName)
