"""As a command: numbers that a decoder layer's passes read and write a token, beside its products: a line of JSON.

In a process of its own, as what other tests patch in transformers and torch would be counted, too.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import torch

from bench.rollout import Size, make_model, make_samples
from tests.bench.traffic import Traffic
from univg_fast.packing import build_row
from univg_fast.structs import Group

PRODUCTS = ("mm", "addmm", "_scaled_dot_product_flash_attention_for_cpu")
PRODUCTS += ("_scaled_dot_product_flash_attention_for_cpu_backward",)


def numbers_of_passes(size: Size) -> tuple[float, float]:
    """Read and written a token, forward and backward, of all layers and what is around them."""
    model, _ = make_model(size, torch.device("cpu"))
    model.model.model.visual.requires_grad_(False)
    (sample,) = make_samples(size)
    responses = tuple(np.arange(5, 5 + size.tokens) for _ in range(size.group))
    row = build_row([Group(sample, responses)], model.family, attention=model.attention.face)
    with torch.no_grad():
        features = model.encode_images(row.pixel_values, row.vision)
    with Traffic() as forward:
        states = model.states(row, features)
    with Traffic() as backward:
        states.sum().backward()
    return tuple(each.total(PRODUCTS) / 4 / row.num_tokens for each in (forward, backward))  # type: ignore[return-value]


def main() -> None:
    size = Size(prompts=1, images=1, side=8, group=4, tokens=16, vocab=300, hidden=256, layers=1)
    one, three = numbers_of_passes(size), numbers_of_passes(replace(size, layers=3))
    each = [(many - few) / 2 for few, many in zip(one, three, strict=True)]
    print(json.dumps({"hidden": size.hidden, "forward": each[0], "backward": each[1]}), flush=True)


if __name__ == "__main__":
    main()
