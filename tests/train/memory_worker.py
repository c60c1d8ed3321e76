"""Run under torchrun by test_memory.py: bytes that a rank really holds, beside the estimate's; rank 0 writes JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1]))
from tiny import VOCAB, random_group

from univg_fast import distributed
from univg_fast.config import Config, DeepSpeedConfig, ModelConfig, OptimConfig
from univg_fast.config.schema import LoraConfig
from univg_fast.loss import sft_head
from univg_fast.model import PackedModel, load_model
from univg_fast.packing import build_row
from univg_fast.train.engine import make_engine, release
from univg_fast.train.memory import GIB, Load, memory
from univg_fast.train.setup import freeze
from univg_fast.train.shapes import shape_of
from univg_fast.train.zero import declare_head

ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
OFFLOAD = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}, "zero_force_ds_cpu_optimizer": False}
ROUNDED = {"data_types": {"grad_accum_dtype": "bf16"}}
CASES: dict[str, tuple[str, int, dict[str, Any], LoraConfig | None]] = {
    **{f"float32-{stage}": ("float32", stage, ALL, None) for stage in range(4)},
    **{f"bfloat16-{stage}": ("bfloat16", stage, ALL, None) for stage in (1, 2, 3)},
    "adapters": ("bfloat16", 1, {}, LoraConfig(r=4)),
    "offloaded": ("bfloat16", 2, OFFLOAD, None),
    "rounded": ("bfloat16", 1, ROUNDED, None),
}


def size(tensors: Any) -> int:
    """Views of one piece of memory count once."""
    pieces = {t.data_ptr(): t.numel() * t.element_size() for t in tensors if t is not None and t.numel()}
    return sum(pieces.values())


def held(engine: Any, stage: int) -> dict[str, int]:
    """Where each of DeepSpeed's wrappers holds what, after a step and a backward pass."""
    model, wrapper = engine.module, engine.optimizer
    weights = [getattr(p, "ds_tensor", p) for p in model.parameters()]
    moments = [x for state in engine.basic_optimizer.state.values() for x in state.values() if x.ndim]
    kind = type(wrapper).__name__
    if kind == "BF16_Optimizer":
        gradients, master = wrapper.fp32_groups_gradients_flat, wrapper.fp32_groups_flat_partition
    elif stage == 3:
        gradients, master = [wrapper.grad_partitions_flat_buffer], wrapper.fp32_partitioned_groups_flat
    else:
        gradients = [x for p in model.parameters() for x in (p.grad, getattr(p, "grad_accum", None))]
        for groups in (wrapper.averaged_gradients, wrapper.all_grad_tensors) if stage else ():
            gradients += [x for group in groups.values() for x in group or ()]
        master = wrapper.single_partition_of_fp32_groups if stage else []
    return {"weights": size(weights), "gradients": size(gradients), "optimizer": size(moments) + size(master)}


def look(dtype: str, stage: int, given: dict[str, Any], lora: LoraConfig | None) -> dict[str, Any]:
    deepspeed = DeepSpeedConfig(zero_stage=stage, config=given)
    config = Config(model=ModelConfig(torch_dtype=dtype, lora=lora), deepspeed=deepspeed)  # type: ignore[arg-type]
    inner = load_model("qwen2_vl_tiny", getattr(torch, dtype), vocab=VOCAB)
    freeze(inner, config.model)
    model = PackedModel(inner).train()
    engine = make_engine(model, OptimConfig(), deepspeed, 3)
    declare_head(model, stage)
    row = build_row([random_group(np.random.default_rng(0), [(4, 4)], [5])], model.family)
    for stepping in (True, False):
        engine.backward(engine(row, sft_head(row, 5.0))[0], scale_wrt_gas=False)
        if stepping:
            engine.step()
    found = held(engine, stage)
    release(engine)
    lines = memory("sft", config, shape_of(config.model, VOCAB), Load.full(config), distributed.world_size())
    return {
        "held": found,
        "estimate": {line.name: line.value * GIB for line in lines},
        "formulas": {line.name: line.formula for line in lines},
    }


def main() -> None:
    distributed.init(timeout_s=300)
    report = {name: look(*case) for name, case in CASES.items()}
    if distributed.is_main():
        Path(sys.argv[1]).write_text(json.dumps(report))


if __name__ == "__main__":
    distributed.run(main)
