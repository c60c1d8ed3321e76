"""The reference policy: equal in all its forms, and what of it lies on the device; adapters at every ZeRO stage."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from tiny import FAMILIES, random_group, tiny_model

from univg_fast.config import Config, ModelConfig
from univg_fast.config.schema import LoraConfig
from univg_fast.data.tokenizer import build_tokenizer
from univg_fast.loss import logprob_head
from univg_fast.model import ImageFeatures, PackedModel
from univg_fast.packing import Row, build_row
from univg_fast.train.reference import Reference
from univg_fast.train.setup import load_policy
from univg_fast.train.streaming import StreamedWeights

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def report(launch: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("adapters") / "report.json"
    done = launch("adapters_worker.py", path, world=2)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(path.read_text())


@pytest.mark.parametrize("stage", range(4))
def test_training_moves_the_adapters_only(report: Any, stage: int) -> None:
    found = report[str(stage)]
    assert found["moved"] == found["trainable"] and len(found["moved"]) == 2 * 21 + 1
    assert all("lora_" in name or "modules_to_save" in name for name in found["moved"])


@pytest.mark.parametrize("stage", range(4))
def test_the_reference_is_the_model_without_its_adapters(report: Any, stage: int) -> None:
    """With one row on one rank and three on the other, which ZeRO 3 would not survive without passes that stand in."""
    found = report[str(stage)]
    assert found["reference"], "bit for bit, although dropout is on in training"
    assert found["gap"] > 1e-3 and found["train_mode"] and found["counts"][0] == found["counts"][1]


@pytest.mark.parametrize("stage", range(4))
def test_a_checkpoint_without_frozen_weights_loads_back_exactly(report: Any, stage: int) -> None:
    found = report[str(stage)]
    assert found["loaded"] and found["further"], "and goes on exactly"
    # weights and AdamW's moments of the adapters and the vocabulary; the model alone would be more
    assert found["bytes"] < found["whole"]


def rows_of(model: PackedModel) -> list[Row]:
    rng, patch = np.random.default_rng(2), model.family.patch_size
    cases: list[Any] = [[([(8, 4), (4, 4)], [5, 3])], [([], [4])], [([(4, 6)], [2]), ([(6, 4)], [7])]]
    return [build_row([random_group(rng, g, r, patch) for g, r in case], model.family) for case in cases]


def outside(units: StreamedWeights) -> dict[int, torch.UntypedStorage]:
    """What of the device's memory streamed weights lie in, by address."""
    own = {unit.host.untyped_storage().data_ptr() for unit in units.units}
    found = (p.untyped_storage() for unit in units.units for p in unit.parameters)
    return {storage.data_ptr(): storage for storage in found if storage.data_ptr() not in own}


DEVICES = ["cpu", pytest.param("cuda", marks=(pytest.mark.gpu, NO_GPU))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tower", [False, True], ids=["features", "own tower"])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_in_host_memory_give_the_same_out_of_two_buffers(family: str, tower: bool, device: str) -> None:
    plain = tiny_model(family).requires_grad_(False)
    model = copy.deepcopy(plain)
    plain.to(device)
    if not tower:
        model.model.model.visual = plain.model.model.visual
    rows = [row.to(torch.device(device)) for row in rows_of(plain)]
    features: list[ImageFeatures | None] = [None] * len(rows)
    if not tower:
        features = [plain.encode_images(r.pixel_values, r.vision) if len(r.image_positions) else None for r in rows]
    units = StreamedWeights(model, torch.device(device), tower=tower)
    seen: dict[int, torch.UntypedStorage] = {}  # held, so that no address comes twice
    for layer in model.modules():  # after the hook that fetches
        layer.register_forward_pre_hook(lambda *_: seen.update(outside(units)))
    reference = Reference(units.forward, model, 0.7, "auto", "", context=units.session)
    if device == "cuda":
        torch.cuda._sleep(200_000_000)  # the host is far ahead
    found = reference.log_probs(rows, features, 9, (rows[0], features[0]))
    with torch.no_grad():
        for got, row, feature in zip(found, rows, features, strict=True):
            assert torch.equal(got, plain(row, logprob_head(row, 0.7), feature))
    largest = max(unit.host.numel() * unit.host.element_size() for unit in units.units)
    assert [storage.nbytes() for storage in seen.values()] == [largest] * 2, "in all rows"
    assert not outside(units) and not units.buffers, "and none after the pass"
    streamed = units.host_bytes / sum(
        p.numel() * p.element_size() for p in plain.model.model.language_model.parameters()
    )
    assert streamed > 0.95, "nearly all of the language model"


def test_weights_that_are_streamed_are_read_and_not_remembered() -> None:
    """The equality above must not come from weights that stayed behind."""
    model = tiny_model().requires_grad_(False)
    row = rows_of(model)[1]
    units = StreamedWeights(model, torch.device("cpu"), tower=True)
    reference = Reference(units.forward, model, 1.0, "auto", "", context=units.session)
    (first,) = reference.log_probs([row], [None], 1, (row, None))
    for unit in units.units[2:]:
        unit.host.mul_(1.5)
    (second,) = reference.log_probs([row], [None], 1, (row, None))
    assert not torch.equal(first, second)


ADAPTED = {
    "model.freeze_vision_tower": "true",
    "model.lora.r": "4",
    "model.lora.lora_dropout": "0.1",
    "deepspeed.zero_stage": "2",
    "sft.max_steps": "4",
    "grpo.max_steps": "2",
    "grpo.learning_rate": "1e-2",
    "grpo.prompts_per_step": "4",
    "grpo.max_completion_length": "24",
    "grpo.difficulty": "none",
    "rewards.terms": '{"length": 1.0}',  # the small model earns nothing else yet, and something must move
    "rewards.difficulty_from": "length",
    "evaluate.max_samples": "2",
}


@pytest.mark.slow
def test_adapters_in_a_whole_run(trainer: Callable[..., Any], tmp_path: Path) -> None:
    """A run that ends early and goes on, keeps its adapters apart and its reference in host memory equals one that does
    none of this: resuming, the start of stage 2 from stage 1's export, two kinds of reference."""
    settings = {key.replace(".", "__"): value for key, value in ADAPTED.items()}
    whole = trainer(tmp_path / "whole", ranks=2, **settings)
    apart = settings | {"grpo__reference": "host", "model__lora__merge_on_export": "false"}
    trainer(tmp_path / "apart", ranks=2, run__max_steps="2", **apart)
    again = trainer(tmp_path / "apart", ranks=2, **apart)
    assert "reference: the policy with its adapters off" in whole.output and "in host memory" in again.output
    assert "resumed sft at step 2" in again.output
    assert (again.folder / "hf" / "sft" / "adapter_config.json").is_file()
    for stage, steps in (("sft", 4), ("grpo", 2)):
        pairs = zip(whole.metrics(stage), again.metrics(stage), strict=True)
        for number, (want, got) in enumerate(pairs, 1):
            for key in ("step", "loss", "grad_norm", *(("kl", "reward") if stage == "grpo" else ())):
                assert got[key] == want[key], f"{stage}, step {number}: {key}"  # bit for bit, dropout and all
        assert number == steps
    assert whole.metrics("grpo")[1]["kl"] > 1e-3, "the policy must have left the reference"


def test_a_model_that_is_loaded_draws_from_nobodys_random_stream(tmp_path: Path) -> None:
    """A reference is loaded after a checkpoint has put back the stream that dropout reads."""
    model = tiny_model().model
    model.save_pretrained(tmp_path / "base")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    wrapped.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    wrapped.save_pretrained(str(tmp_path / "adapters"))
    model.config.save_pretrained(tmp_path / "adapters")
    processor: Any = SimpleNamespace(tokenizer=build_tokenizer(["x"]))
    for path in (tmp_path / "base", tmp_path / "adapters"):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        config = Config(model=ModelConfig(path=str(path), lora=LoraConfig(r=4)))
        load_policy(config, processor, str(path), torch.device("cpu"))
        assert torch.equal(before, torch.get_rng_state()), path.name
