"""The DeepSpeed engine: clipping, and one optimizer step over any number of rows.

Accumulation is unmanaged: the caller says where a step ends. Rows come with losses divided by GLOBAL counts;
DeepSpeed averages gradients over the ranks, so `train_step` multiplies by the world size. Minimised is
the sum over all rows of all ranks, whatever the world size. ZeRO 0 and 1 reduce once, in step(), so ranks may
hold different numbers of rows; ZeRO 2 and 3 communicate in every backward pass and want equal numbers (the callers'
`passes`).
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from typing import Any

import torch
from torch import nn

from univg_fast import distributed
from univg_fast.config import DeepSpeedConfig, OptimConfig
from univg_fast.train.optimizer import elements, learning_rate_factor, make_optimizer, offload_device, parameter_groups

NOTHING = nullcontext()
# What DeepSpeed hangs on modules and parameters and leaves there. Each leads to an optimizer's buffers, and the two of
# the backward pass would act in the next engine's, too.
LEFT_BEHIND = ("_hp_grad", "_z3_optimizer", "pre_bwd_fn", "post_bwd_fn")


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did.

    `loss` is the sum of this rank's row losses, which are the tensor `losses`. `grad_norm` is the global norm before
    clipping, NaN or infinity where a loss or a gradient of any rank was not finite; then `applied` is False on all
    ranks: nothing moved. `learning_rate` is the rate that the step used. `loss` and `grad_norm` are 0-d tensors on the
    device until `read`.
    """

    loss: Any
    grad_norm: Any
    applied: bool
    learning_rate: float
    losses: torch.Tensor

    def read(self) -> StepResult:
        """The same with floats, in one copy from the device."""
        both = (torch.as_tensor(x, dtype=torch.float32, device=self.loss.device) for x in (self.loss, self.grad_norm))
        loss, norm = torch.stack(list(both)).tolist()
        return replace(self, loss=loss, grad_norm=norm)


def make_engine(module: nn.Module, optim: OptimConfig, deepspeed: DeepSpeedConfig, total_steps: int) -> Any:
    """`deepspeed.initialize` for this module's trainable parameters; returns the engine.

    The weights' dtype decides: float32, or bfloat16 with float32 master weights and float32 accumulation.
    Call `distributed.init` first; to make a second engine of a module, `release` the first. Raises ValueError
    where the module has nothing to train, mixes dtypes, or asks for bfloat16 at stage 0, or where DeepSpeed refuses
    what the user laid over its config.
    """
    import deepspeed as ds  # late: distributed.init must set it up first

    groups = parameter_groups(module, optim.weight_decay)
    dtypes = {parameter.dtype for group in groups for parameter in group["params"]}
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.bfloat16}:
        names = ", ".join(sorted(map(str, dtypes))) or "none (nothing to train)"
        raise ValueError(f"trainable parameters: expected all float32 or all bfloat16, got {names}")
    (dtype,) = dtypes
    if dtype == torch.bfloat16 and deepspeed.zero_stage == 0:
        raise ValueError("deepspeed.zero_stage: expected 1, 2 or 3 with bfloat16 (0 would accumulate in bfloat16)")
    sizes = [sum(map(elements, group["params"])) for group in groups]
    config = engine_config(optim, deepspeed, dtype, next(module.parameters()).device.type)
    optimizer = make_optimizer(groups, optim, config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(optim, total_steps))
    if deepspeed.zero_stage == 0:
        optimizer.register_step_pre_hook(partial(_clip_or_skip, max_norm=optim.max_grad_norm))
    distributed.limit_deepspeed()
    try:
        with redirect_stdout(StringIO()):  # DeepSpeed prints its memory use at every stage of the bfloat16 set-up
            engine, *_ = ds.initialize(model=module, optimizer=optimizer, lr_scheduler=schedule, config=config)
    except ValueError as error:  # also pydantic's, of several lines
        if not deepspeed.config:
            raise
        raise ValueError(
            f"deepspeed.config: DeepSpeed refuses {deepspeed.config}: {' '.join(str(error).split())}; correct or leave "
            "out what it names"
        ) from error
    distributed.limit_deepspeed()
    line = describe(engine, sizes)
    if distributed.is_main():
        print(line, flush=True)
    return engine


def describe(engine: Any, sizes: list[int]) -> str:
    """A line on what DeepSpeed made. RuntimeError where it chose another wrapper than this trainer was proved with.

    `sizes`: parameters of each optimizer group, as they were before DeepSpeed flattened them.
    """
    model_dtype, accumulation = engine.get_data_types()
    stage, optimizer = engine.zero_optimization_stage(), type(engine.basic_optimizer)
    summing_apart = model_dtype == torch.bfloat16 and accumulation == torch.float32 and not engine.zero_cpu_offload()
    wrapper = type(engine.optimizer).__name__
    expected = {
        0: optimizer.__name__,
        1: "BF16_Optimizer" if summing_apart else "DeepSpeedZeroOptimizer",
        2: "DeepSpeedZeroOptimizer",
        3: "DeepSpeedZeroOptimizer_Stage3",
    }[stage]
    if wrapper != expected:
        raise RuntimeError(f"DeepSpeed at ZeRO {stage}: expected the optimizer wrapper {expected}, got {wrapper}")
    offloaded = offload_device(engine.config)
    where = f" on {offloaded}" if offloaded else ""
    inside = "" if stage == 0 else f" of {optimizer.__name__}{where}"
    sent, summed = engine.communication_data_type, str(accumulation)[6:]
    between = "" if sent == accumulation else f" and sent in {str(sent)[6:]}"
    return (
        f"engine: ZeRO {stage}, {wrapper}{inside}; weights {str(model_dtype)[6:]}, gradients "
        f"summed in {summed}{between}; {len(sizes)} groups of at most {max(sizes) / 1e6:.4g} M parameters"
    )


def release(engine: Any) -> nn.Module:
    """Take the module back from an engine, so that another engine can be made of it.

    From then on the module holds nothing of the engine. What the engine held is free when nobody holds the engine, and
    Python has looked for circles (`free_memory`): DeepSpeed itself frees none of it. ZeRO 3's pieces of the weights
    stay: a cache of DeepSpeed's has them for good.
    """
    module: nn.Module = engine.module
    engine.destroy()
    for hook in (engine.module_forward_pre_hook, engine.module_forward_post_hook):
        hook.remove()
    for part in (*module.modules(), *module.parameters()):
        for name in LEFT_BEHIND:
            vars(part).pop(name, None)
    return module


def free_memory(device: torch.device) -> None:
    """Give back what models and engines that nobody uses any more hold in circles of references. Call it on all ranks.

    Python's collector would come by at some time, on no two ranks at the same one.
    """
    for _ in range(2):  # a parameter that a graph holds is out of its sight until the graph is gone
        gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def train_step(
    engine: Any, losses: Iterable[torch.Tensor], stepping: AbstractContextManager[None] = NOTHING
) -> StepResult:
    """Backward through each row's scalar loss as the iterable makes it, then one optimizer step. Collective.

    `losses`: at least one 0-d tensor per rank. The forward pass of a row runs when the iterator reaches it,
    so only one row's activations live at a time. A loss that is not finite makes gradients that are not, so that all
    ranks see it in the norm, and skip the step together. The optimizer's step is made inside of `stepping`.
    """
    learning_rate, scale = engine.get_lr()[0], distributed.world_size()
    kept = []  # on the device: no synchronisation per row
    for loss in losses:
        value = loss.detach()
        engine.backward(loss * (scale + 0.0 * value), scale_wrt_gas=False)  # 0 * infinity is NaN, too
        kept.append(value)
    if not kept:
        raise ValueError(f"rank {distributed.rank()}: a step needs a row on every rank; pad with one of weight 0")
    with stepping:
        engine.step()
    rows, applied = torch.stack(kept), engine.was_step_applied()
    if not applied:
        _drop_sums(engine.optimizer)
    return StepResult(rows.sum(), engine.get_global_grad_norm(), applied, learning_rate, rows)


def _drop_sums(optimizer: Any) -> None:
    """ZeRO 1 and 2 with an offloaded optimizer would add the next rows to a skipped step's sums, which are NaN."""
    if getattr(optimizer, "cpu_offload", False):
        for group in getattr(optimizer, "averaged_gradients", {}):
            optimizer.averaged_gradients[group] = optimizer.all_grad_tensors[group] = None


def engine_config(
    optim: OptimConfig, deepspeed: DeepSpeedConfig, dtype: torch.dtype, device_type: str
) -> dict[str, Any]:
    """The DeepSpeed config: ours, with `deepspeed.config` laid over it."""
    stage = deepspeed.zero_stage
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # only DeepSpeed's sample counter reads it
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": optim.max_grad_norm if stage else 0.0,  # stage 0: _clip_or_skip
        "zero_optimization": {
            "stage": stage,
            "contiguous_gradients": True,
            "overlap_comm": stage == 2 and device_type == "cuda",
            "reduce_bucket_size": 300_000_000,
        },
        "steps_per_print": None,
    }
    if dtype == torch.bfloat16:
        # immediate: a weight's bfloat16 gradient goes into the float32 sum and is freed, not kept until the pass's end
        config["bf16"] = {"enabled": True, "check_grad_overflow": True, "immediate_grad_update": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        if stage == 1:  # reduces once in a step; unset it would round the sums to bfloat16 first
            config["communication_data_type"] = "fp32"
    return _overlay(config, deepspeed.config)


def _overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        held = merged.get(key)
        merged[key] = _overlay(held, value) if isinstance(held, dict) and isinstance(value, Mapping) else value
    return merged


def _clip_or_skip(optimizer: Any, args: Any, kwargs: Any, *, max_norm: float) -> None:
    """Before a stage-0 step, where DeepSpeed has neither norm nor check: make both, under the names it reads.

    The gradients are already averaged over the ranks, so every rank decides alike.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    optimizer._global_grad_norm, optimizer.overflow = norm, not bool(torch.isfinite(norm))
    if optimizer.overflow:
        for parameter in parameters:
            parameter.grad = None  # AdamW passes over it
    elif max_norm > 0:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
