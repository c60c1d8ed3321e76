"""Attention over packed rows, registered with transformers under two names.

`univg_shared_prefix` is the language model's (text.py), `univg_images` that of vision towers (vision.py). Neither name
holds the word that transformers takes for a kernel request.
"""

from univg_fast.model.attention.choose import Attention, attention_of, choose_attention, refuse_dropout
from univg_fast.model.attention.text import TEXT, shared_prefix_attention
from univg_fast.model.attention.vision import VISION, image_attention

__all__ = [
    "TEXT",
    "VISION",
    "Attention",
    "attention_of",
    "choose_attention",
    "image_attention",
    "refuse_dropout",
    "shared_prefix_attention",
]
