"""Loading: versions, unknown folders, seeded weights, a saved folder read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import VOCAB

from univg_fast.model.load import check_version, load_model


def test_seed_decides_the_weights() -> None:
    first, same, other = (load_model("qwen2_vl_tiny", vocab=VOCAB, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_saved_folder_is_read_back_equal(tmp_path: Path) -> None:
    model = load_model("qwen2_vl_tiny", vocab=VOCAB, seed=1)
    model.save_pretrained(tmp_path)
    again = load_model(str(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert again.lm_head.weight is again.get_input_embeddings().weight


def test_unknown_path_names_the_choices() -> None:
    with pytest.raises(ValueError, match=r"model\.path: .*qwen2_vl_tiny.*no/such/folder"):
        load_model("no/such/folder")


def test_missing_special_tokens_are_named() -> None:
    with pytest.raises(ValueError, match=r"image_pad"):
        load_model("qwen2_vl_tiny", vocab={"a": 0})


@pytest.mark.parametrize("version", ["4.49.0", "5.24.0"])
def test_transformers_outside_the_range_is_refused(version: str) -> None:
    with pytest.raises(RuntimeError, match=rf"transformers: expected >=5\.16.*got {version}"):
        check_version(version)
