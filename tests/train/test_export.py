"""Exported folders: plain transformers (and peft) load them, and they answer as the trained model does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from univg_fast.model import load_model

TOKENS = torch.tensor([[0, 7, 8, 9, 10, 11, 12]])  # those of export_worker.py
CASES = ["1", "3", "1_lora", "3_lora"]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(launch: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    done = launch("export_worker.py", folder, world=2)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


def logits(model: Any) -> torch.Tensor:
    model.set_attn_implementation("sdpa")  # of a plain forward pass
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


@pytest.mark.parametrize("case", CASES)
def test_plain_transformers_loads_it_and_answers_alike(exported: Path, case: str) -> None:
    want = torch.load(exported / case / "logits.pt")
    before = logits(load_model(str(exported / case / "base")))
    assert (want - before).abs().max() > 1e-2, "training moved nothing: the test does not test"
    plain = AutoModelForImageTextToText.from_pretrained(exported / case / "whole", dtype=torch.float32)
    torch.testing.assert_close(logits(plain), want, rtol=1e-4, atol=1e-5)
    ours = logits(load_model(str(exported / case / "whole")))
    if "lora" in case:
        torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-5)  # merging rounds
    else:
        assert torch.equal(ours, want), "the same weights, bit by bit"


@pytest.mark.parametrize("case", CASES[2:])
def test_adapters_apart_are_pefts(exported: Path, case: str) -> None:
    folder = exported / case
    base = AutoModelForImageTextToText.from_pretrained(folder / "base", dtype=torch.float32)
    wrapped = peft.PeftModel.from_pretrained(base, folder / "adapters")
    torch.testing.assert_close(logits(wrapped.get_base_model()), torch.load(folder / "logits.pt"), rtol=1e-4, atol=1e-5)
    names = load_file(folder / "adapters" / "adapter_model.safetensors")
    assert all("lora_" in name for name in names) and not (folder / "adapters" / "model.safetensors").exists()


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_exports_the_same_bytes_without_an_engine(exported: Path, case: str) -> None:
    name = "adapter_model.safetensors" if "lora" in case else "model.safetensors"
    of_engine = exported / case / ("adapters" if "lora" in case else "whole") / name
    assert (exported / case / "from_checkpoint" / name).read_bytes() == of_engine.read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_shards_hold_each_weight_once(exported: Path, case: str) -> None:
    folder = exported / case / "sharded"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = {path.name: load_file(path) for path in folder.glob("*.safetensors")}
    assert len(shards) > 2 and not list(folder.glob("*.part"))
    found = {name: weight for shard in shards.values() for name, weight in shard.items()}
    whole = load_file(exported / case / "whole" / "model.safetensors")
    assert ("lm_head.weight" in whole) == (case == "3"), "tied in the other cases"
    assert sum(map(len, shards.values())) == len(found) == len(whole)
    assert all(torch.equal(weight, whole[name]) for name, weight in found.items())
    assert all(name in shards[file] for name, file in index["weight_map"].items())
    assert index["metadata"]["total_size"] == sum(x.numel() * x.element_size() for x in found.values())
    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(logits(plain), torch.load(exported / case / "logits.pt"), rtol=1e-4, atol=1e-5)
