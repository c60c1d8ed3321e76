"""model.liger: what would be replaced is called by transformers as installed; what is not is an error with its name."""

from __future__ import annotations

import sys
from collections import Counter
from copy import deepcopy

import numpy as np
import pytest
import torch
from tiny import FAMILIES, random_group, tiny_model

from univg_fast.model import PackedModel
from univg_fast.model.liger import apply_liger, check_used, find_patches, small_row
from univg_fast.packing import build_row

pytest.importorskip("liger_kernel")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_symbol_is_called_and_then_back_in_its_place(family: str) -> None:
    packed = tiny_model(family)
    row = small_row(packed)
    own_forwards = [m for m in packed.modules() if "forward" in vars(m)]
    with torch.no_grad():
        before = packed.states(row)
        patches = find_patches(packed.model)
        check_used(packed, patches)
        assert torch.equal(packed.states(row), before)
    assert [m for m in packed.modules() if "forward" in vars(m)] == own_forwards
    kinds = Counter(p.kind for p in patches)
    layers = packed.model.config.get_text_config().num_hidden_layers
    norms = 2 + 2 * (family == "qwen3_vl")  # of queries and keys too
    tower = sum(type(m).__name__.endswith("RMSNorm") for m in packed.model.model.visual.modules())
    assert kinds["RMSNorm"] == norms * layers + 1 + tower
    assert kinds["SwiGLU"] >= layers and kinds["RoPE"] == 2
    assert bool(kinds["LayerNorm"]) == (family != "qwen2_5_vl")  # its tower has RMSNorm


def test_a_symbol_that_nobody_calls_is_an_error_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a transformers whose attention takes another function: the old name is there and not called."""
    packed = tiny_model()
    attention = packed.model.model.language_model.layers[0].self_attn
    home = sys.modules[type(attention).__module__]
    patches = find_patches(packed.model)
    rotary = home.apply_rotary_pos_emb
    # the attention's forward keeps the old name in its code, and reaches another function through it
    original = type(attention).forward

    def forward(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        watched, home.apply_rotary_pos_emb = home.apply_rotary_pos_emb, rotary
        try:
            return original(self, *args, **kwargs)
        finally:
            home.apply_rotary_pos_emb = watched

    monkeypatch.setattr(type(attention), "forward", forward)
    with pytest.raises(ValueError, match=r"does not call modeling_qwen2_vl.apply_rotary_pos_emb \(1 of them\)"):
        check_used(packed, patches)
    assert home.apply_rotary_pos_emb is rotary, "what was watched is put back after an error too"


def test_a_kind_that_is_not_there_is_an_error_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tiny_model()
    home = sys.modules[type(packed.model.model.language_model).__module__]
    for name in ("apply_rotary_pos_emb", "apply_rotary_pos_emb_vision"):
        monkeypatch.delattr(home, name)
    with pytest.raises(ValueError, match="model.liger: found no RoPE in Qwen2VLForConditionalGeneration"):
        find_patches(packed.model)


def test_a_model_without_swiglu_is_told_apart() -> None:
    packed = tiny_model()
    for layer in packed.model.model.language_model.layers:
        layer.mlp.act_fn = torch.nn.GELU()
    with pytest.raises(ValueError, match="found no SwiGLU"):
        find_patches(packed.model)


def test_a_copy_of_a_patched_model_is_patched_in_its_own_parts() -> None:
    """As the rollout's copy under ZeRO 3 is."""
    packed = tiny_model()
    for patch in find_patches(packed.model):
        if patch.kind != "RoPE":
            setattr(patch.owner, patch.attribute, patch.replacement)
    copy = deepcopy(packed)
    for module in (m for m in copy.modules() if type(m).__name__.endswith("RMSNorm")):
        assert vars(module)["forward"].args[-1] is module


def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(ValueError, match="model.liger: expected a CUDA device, got cpu"):
        apply_liger(tiny_model())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_model(family: str) -> None:
    """Hidden states and gradients, against transformers' own layers in fp32."""
    rng = np.random.default_rng(0)
    plain = tiny_model(family).cuda()
    patch = plain.family.patch_size
    row = build_row([random_group(rng, [(4, 6), (8, 4)], [5, 9], patch)], plain.family).to("cuda")
    want = plain.states(row)
    want.square().mean().backward()
    fast = PackedModel(tiny_model(family).cuda().model)
    assert "RMSNorm" in apply_liger(fast)
    got = fast.states(row)
    got.square().mean().backward()
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    for (name, x), (_, y) in zip(fast.named_parameters(), plain.named_parameters(), strict=True):
        assert x.grad is not None and y.grad is not None
        assert float((x.grad - y.grad).norm()) <= 1e-3 * float(y.grad.norm()) + 1e-7, name
