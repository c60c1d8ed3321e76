"""Run by test_trl_ranks.py: torchrun trl_ranks_run.py FOLDER; TRL over ranks, as it comes and patched -> JSON lines."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from integrations import trl_problem
from integrations.trl_problem import SMALL, Run
from peft import LoraConfig
from transformers import Qwen2Config
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from univg_fast.integrations.trl import patch, patch_logprobs

ZERO3 = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}
# accelerate's FSDP2 does not tell `generate` to wait for ranks that need more tokens: here all need the same
FSDP2 = {"fsdp": True, "generation_kwargs": {"min_new_tokens": 7}}
HOSTS: dict[str, dict[str, Any]] = {"ddp": {}, "fsdp2": FSDP2, "zero3": {"deepspeed": ZERO3}}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"model": Qwen2Config(**SMALL | {"tie_word_embeddings": True})},
    "lora": {
        "peft_config": LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
        "gradient_checkpointing": True,
    },
    "masked": {"mask_truncated_completions": True},  # of one rank's completions none ends
    "bf16": {"bf16": True, "max_steps": 1},  # a rounding more takes ratios over the clip
}
COMPARED = {"patch": "theirs", "patch_logprobs": "theirs", "phi": "by_hand"}
# two micro-batches of three a rank: a group of four lies on both
SETTINGS = {"per_device_train_batch_size": 3, "num_iterations": 2, "max_steps": 2, "ddp_backend": "gloo"}


def allow_fsdp_on_a_cpu() -> None:
    """accelerate takes FSDP for GPUs only, though all of its parts run on a CPU: say to its state what it does not."""
    begin = AcceleratorState.__init__

    def begin_with_fsdp(self: Any, *arguments: Any, fsdp_plugin: Any = None, **named: Any) -> None:
        begin(self, *arguments, fsdp_plugin=fsdp_plugin, **named)
        if fsdp_plugin is not None:
            self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = begin_with_fsdp


def went_through(host: str, made: Any) -> bool:
    """The model is in the hands of whom the run is named after."""
    names = [cls.__name__ for cls in type(made.model_wrapped).__mro__]
    return {"ddp": "DistributedDataParallel", "fsdp2": "FSDPModule", "zero3": "DeepSpeedEngine"}[host] in names


def run(host: str, model: str, side: str, folder: Path) -> Run:
    unset_hf_deepspeed_config()  # else the next model is made in shards, before its noise
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        os.environ.pop(name, None)
    made = trl_problem.trainer(folder / os.environ["RANK"], **SETTINGS | HOSTS[host] | MODELS[model])
    if side == "by_hand":
        trl_problem.weigh_by_hand(made)
    sides = {"patch": lambda: patch(made), "patch_logprobs": patch_logprobs, "phi": lambda: patch(made, phi="iou")}
    with sides.get(side, nullcontext)():
        found = trl_problem.run(made)
    assert went_through(host, made), f"{host}: {type(made.model_wrapped)}"
    names = [name for name, parameter in made.model.named_parameters() if parameter.requires_grad]
    assert all(list(step) == names and all(g.any() for g in step.values()) for step in found[1]), (host, model, side)
    return found


def worst(ours: Run, theirs: Run) -> float:
    """Of all ranks, steps and parameters: the error by the parameter's largest entry."""
    pairs = zip(ours[1], theirs[1], strict=True)
    errors = [(mine[name] - g).abs().max() / g.abs().max() for mine, other in pairs for name, g in other.items()]
    largest = torch.stack(errors).amax().float()
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return largest.item()


def main(folder: Path) -> None:
    allow_fsdp_on_a_cpu()
    for name, settings in MODELS.items():  # before there are ranks: then only the first writes all of it
        trl_problem.write_model(folder / name / os.environ["RANK"], settings.get("model"))
    for model, host in product(MODELS, HOSTS):
        if (model, host) == ("masked", "fsdp2"):  # where no completion ends at all
            continue
        compared = COMPARED if model == "plain" else {"phi": "by_hand"}
        runs = {side: run(host, model, side, folder / model) for side in dict.fromkeys((*compared, *compared.values()))}
        errors = {ours: worst(runs[ours], runs[theirs]) for ours, theirs in compared.items()}
        assert torch.distributed.get_world_size() == 2 and torch.distributed.get_backend() == "gloo"
        if torch.distributed.get_rank() == 0:
            logs = {side: logged for side, (logged, _) in runs.items()}
            print(json.dumps({"case": f"{host} {model}", "logs": logs, "errors": errors}), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
