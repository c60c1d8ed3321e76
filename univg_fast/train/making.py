"""What a stage is made of: its policy, its loader, its step, and how many steps it has."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from univg_fast import distributed
from univg_fast.config import Config
from univg_fast.data.loader import SampleLoader
from univg_fast.data.mix import mix_of
from univg_fast.data.windows import Planning
from univg_fast.model import PackedModel
from univg_fast.model.attention import Attention, refuse_dropout
from univg_fast.rollout import LocalEngine, stop_ids
from univg_fast.train import stopping
from univg_fast.train.engine import make_engine
from univg_fast.train.grpo import GrpoStep
from univg_fast.train.memory import tell_memory
from univg_fast.train.phases import Phases
from univg_fast.train.random_state import reseed
from univg_fast.train.reference import make_reference
from univg_fast.train.rows import Builder, patch_cost
from univg_fast.train.setup import Inputs, first_sample, load_policy
from univg_fast.train.sft import SftStep
from univg_fast.train.zero import declare_head, plain_copy


def make_policy(
    stage: str, config: Config, inputs: Inputs, start: str, device: torch.device
) -> tuple[Any, PackedModel]:
    """The engine of the policy that begins at `start`, and the policy in one piece (`plain_copy`). Collective."""
    tell_memory(stage, config, inputs.processor.tokenizer.get_vocab(), device)  # before a weight is read
    model = load_policy(config, inputs.processor, start, device).train()
    refuse_dropout(model.model)
    agree_on_attention(model.attention)
    if distributed.is_main():
        print(*model.lines, sep="\n", flush=True)
    plain = plain_copy(model, config.deepspeed.zero_stage) if stage == "grpo" else model
    total = total_steps(stage, config, mix_of(inputs.records[stage]).epoch) * updates_per_step(stage, config)
    engine = make_engine(model, config.sft if stage == "sft" else config.grpo, config.deepspeed, total)
    declare_head(model, config.deepspeed.zero_stage)
    # dropout's streams; whatever ran before in this process, as a resumed run may begin with this stage
    reseed(config.run.seed, ("sft", "grpo").index(stage), distributed.rank())
    return engine, plain


def agree_on_attention(mine: Attention) -> None:
    """RankError unless all ranks chose alike: they would wait for the slowest, and round otherwise. Collective.

    A trial may fail on one rank only: a broken package on its machine, or no memory left on its GPU.
    """
    ranks: dict[Attention, list[int]] = {}
    for rank, choice in enumerate(distributed.gather_objects(mine)):
        ranks.setdefault(choice, []).append(rank)
    if len({choice.name for choice in ranks}) > 1:
        told = ". ".join(f"Rank {', '.join(map(str, held))}: {choice.line}" for choice, held in ranks.items())
        raise distributed.RankError(
            f"model.attention: expected the same choice on all ranks, got different ones. {told}. Mend what is said "
            "there, or have all take the same: model.attention=torch runs anywhere"
        )


def make_loader(stage: str, config: Config, inputs: Inputs, model: PackedModel) -> SampleLoader[Any]:
    """This rank's part of each step, with all that can be made before the step: rows, or a frozen tower's images."""
    build = Builder.of(model)
    images = partial(build.images, budget=config.pack.budget_tokens)
    records = inputs.records[stage]
    return SampleLoader(
        records,
        inputs.processor,
        batch_size(stage, config),
        seed=config.run.seed,
        with_response=stage == "sft",
        planning=planning(stage, config),
        build=build.sft_row if stage == "sft" else None if model.vision_trains else images,
        num_steps=num_batches(stage, config, mix_of(records).epoch),
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        num_workers=config.data.num_workers,
    )


def num_batches(stage: str, config: Config, num_records: int) -> int | None:
    """Batches of the loader in the whole stage; None where only sampling will tell."""
    unknown = stage == "grpo" and config.grpo.dynamic_sampling_max_draws > 1
    return None if unknown else total_steps(stage, config, num_records)


def updates_per_step(stage: str, config: Config) -> int:
    """Optimizer steps of one step of the stage."""
    return config.grpo.steps_per_generation * config.grpo.num_iterations if stage == "grpo" else 1


def planning(stage: str, config: Config) -> Planning:
    """How the stage's steps become rows: in stage 2 only after the rollout, when lengths are known.

    With dynamic sampling only the rewards tell which prompts a mini-batch has: each few of the order are dealt evenly.
    """
    if stage == "sft":
        return Planning(config.pack.budget_tokens, config.pack.window, patch=patch_cost(config.model))
    grpo = config.grpo
    anew = grpo.dynamic_sampling_max_draws > 1
    parts = grpo.prompts_per_step // distributed.world_size() if anew else grpo.steps_per_generation
    return Planning(parts=parts, patch=patch_cost(config.model))


def make_step(
    stage: str,
    config: Config,
    inputs: Inputs,
    start: str,
    device: torch.device,
    engine: Any,
    plain: PackedModel,
    loader: SampleLoader,
    phases: Phases,
) -> SftStep | GrpoStep:
    """What does one step of the stage: where it stands -> an Outcome, or None for a step that was abandoned."""
    processor = inputs.processor
    spare = first_sample(inputs.records[stage], processor, with_response=stage == "sft")
    if stage == "sft":
        return SftStep(config, engine, loader, spare, phases)
    reference = make_reference(config, processor, start, device, engine, plain)
    if reference is not None and distributed.is_main():
        print(reference.line, flush=True)
    rollout = LocalEngine(
        plain,
        processor.tokenizer,
        stop_ids(plain.model, processor.end_token_id),
        cache_gib=config.rollout.cache_gib,
        static=None if config.rollout.cuda_graphs else False,
        own_weights=plain is not engine.module,
        should_stop=stopping.asker(phases),
    )
    step = GrpoStep(config, engine, loader, rollout, plain, reference, spare, phases)
    found = step.check(spare)
    if distributed.is_main():
        print(found, flush=True)
    return step


def batch_size(stage: str, config: Config) -> int:
    """Records of one step over all ranks."""
    return config.sft.per_step_samples if stage == "sft" else config.grpo.prompts_per_step


def total_steps(stage: str, config: Config, num_records: int) -> int:
    """Optimizer schedule length of the stage, in steps of the loader."""
    optim = config.sft if stage == "sft" else config.grpo
    if optim.max_steps:
        return optim.max_steps
    return max(1, math.ceil(num_records * optim.num_train_epochs / batch_size(stage, config)))
