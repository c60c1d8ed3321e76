"""The vision tower's attention by runs of equal sizes equals one masked attention over all patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from univg_fast.model.attention import image_attention
from univg_fast.packing.vision import AttentionRuns, VisionInputs

HEADS, DIM = 3, 8


def block_of(runs: AttentionRuns, patches: int) -> torch.Tensor:
    """Number of each patch's block, in the order in which the tower holds patches."""
    lengths = [length for count, length in runs.runs for _ in range(count)]
    blocks = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    assert len(blocks) == patches
    return blocks if runs.back is None else blocks[runs.back]


def inputs(images: AttentionRuns, windows: AttentionRuns | None) -> VisionInputs:
    return VisionInputs(image_tokens=(), images=images, windows=windows)


SHUFFLE = np.random.default_rng(0).permutation(30)
IMAGES = {
    "one image": AttentionRuns(((1, 30),)),
    "sizes in runs": AttentionRuns(((3, 2), (2, 6), (1, 12))),
    "patches gathered first": AttentionRuns(
        ((2, 9), (3, 4)), torch.from_numpy(SHUFFLE), torch.from_numpy(SHUFFLE.argsort())
    ),
}


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("case", IMAGES)
def test_equals_one_masked_attention(case: str, windowed: bool) -> None:
    module, other = torch.nn.Module(), AttentionRuns(((15, 2),))
    if windowed:
        module.windowed = True
    vision = inputs(other, IMAGES[case]) if windowed else inputs(IMAGES[case], other)
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, HEADS, 30, DIM, generator=generator, dtype=torch.float64) for _ in range(4)]
    *qkv, weights = drawn[0].requires_grad_(), drawn[1].requires_grad_(), drawn[2].requires_grad_(), drawn[3]
    out = image_attention(module, *qkv, None, 0.4, vision=vision)[0]
    blocks = block_of(IMAGES[case], 30)
    want = F.scaled_dot_product_attention(*qkv, attn_mask=blocks[:, None] == blocks, scale=0.4).transpose(1, 2)
    torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-12)
    for got, truth in zip(*(torch.autograd.grad(x, qkv, weights.transpose(1, 2)) for x in (out, want)), strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-12)


def test_an_image_sees_no_other_to_the_last_bit() -> None:
    vision = inputs(AttentionRuns(((3, 10),)), None)
    q, k, v = torch.randn(3, 1, HEADS, 30, DIM, generator=torch.Generator().manual_seed(0))
    before = image_attention(None, q, k, v, None, vision=vision)[0]
    k[:, :, 10:20] += 1
    after = image_attention(None, q, k, v, None, vision=vision)[0]
    assert torch.equal(before[:, :10], after[:, :10]) and torch.equal(before[:, 20:], after[:, 20:])
    assert not torch.equal(before[:, 10:20], after[:, 10:20])


def test_missing_windows_and_missing_inputs_are_named() -> None:
    module = torch.nn.Module()
    module.windowed = True
    x = torch.zeros(1, HEADS, 4, DIM)
    for vision in (None, inputs(AttentionRuns(((1, 4),)), None)):
        with pytest.raises(ValueError, match=r"univg_images: expected vision="):
            image_attention(module, x, x, x, None, vision=vision)
