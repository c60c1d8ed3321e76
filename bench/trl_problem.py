"""The prompts of `bench.trl_step`: image files, a tokenizer, records. Any sampled token is a box, so rewards differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from univg_fast.structs import Record, Target

from .rollout import END, IMAGE, PAD, START, VIDEO, Size

TERMS = {"iou": 1.0, "format": 1.0}  # UniVG-R1's rewards
SPECIAL = {
    IMAGE: "<|image_pad|>",
    START: "<|vision_start|>",
    END: "<|vision_end|>",
    VIDEO: "<|video_pad|>",
    PAD: "<|endoftext|>",
    5: "<|im_start|>",
    6: "<|im_end|>",
}


def make_tokenizer(size: Size) -> PreTrainedTokenizerFast:
    """`size.vocab` tokens: the special ones under the ids of `bench.rollout`'s model; the others are boxes."""
    rng, words = np.random.default_rng(2), dict.fromkeys(SPECIAL[i] for i in range(len(SPECIAL)))
    while len(words) < size.vocab:
        x1, y1, x2, y2 = (int(x) for x in (*rng.integers(0, 500, 2), *rng.integers(500, 1000, 2)))
        words[f"({x1},{y1}),({x2},{y2})"] = None
    model = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=SPECIAL[PAD]))
    model.pre_tokenizer, model.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    model.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL.values()])
    return PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token=SPECIAL[6], pad_token=SPECIAL[PAD], padding_side="left"
    )


def make_records(size: Size, folder: Path) -> list[Record]:
    """Prompts of unequal lengths whose images are JPEG files in `folder`, in the sizes that the model sees."""
    rng, side = np.random.default_rng(3), 14 * size.side
    tokens = make_tokenizer(size).convert_ids_to_tokens(range(len(SPECIAL), size.vocab))
    records = []
    for i in range(size.prompts):
        paths = []
        for j in range(size.images):
            coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3), np.uint8))
            paths.append(folder / f"{i}_{j}.jpg")
            coarse.resize((side, side), Image.Resampling.BICUBIC).save(paths[-1])
        question = " ".join(rng.choice(tokens, size.text + 7 * i))
        target = Target((100, 100, 600, 700))
        record = Record(f"u{i}", f"bench:{i}", tuple(map(str, paths)), question, (target,), cot=False)
        records.append(record)
    return records
