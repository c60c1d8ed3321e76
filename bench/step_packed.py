"""This project's side of `bench.step`: packed rows, with levers that can be turned off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from univg_kernels import grpo_loss

from univg_fast.loss import grpo_head, logprob_head
from univg_fast.loss.grpo import RowTargets
from univg_fast.model import PackedModel
from univg_fast.model.features import ImageFeatures
from univg_fast.packing import Row, build_row
from univg_fast.structs import Group

from .rollout import IMAGE
from .step_problem import CONFIG, Problem
from .step_separate import eager_loss


@dataclass(frozen=True)
class Levers:
    """What is on."""

    prompt_shared: bool = True  # off: a copy of the prompt for each response
    vision_once: bool = True  # off: reference and policy encode the images that stand in their rows
    target_rows: bool = True  # off: the vocabulary's logits of every token
    packing: bool = True  # off: a row for each group
    fused_loss: bool = True  # off: log-softmax, ratio, clip and KL in plain torch


def update(p: Problem, levers: Levers) -> torch.Tensor:
    """One pass of the reference and one of the policy, forward and backward. Returns the loss."""
    owners = list(range(len(p.groups)))
    groups, advantages = p.groups, list(p.advantages)
    if not levers.prompt_shared:
        owners = [i for i, g in enumerate(p.groups) for _ in g.responses]
        groups = [Group(g.sample, (r,)) for g in p.groups for r in g.responses]
        advantages = list(p.advantages.reshape(-1, 1))
    features = _encode(p) if levers.vision_once else None
    parts = [range(len(groups))] if levers.packing else [[i] for i in range(len(groups))]
    total = p.advantages.new_zeros(())
    for indices in parts:
        row = build_row([groups[i] for i in indices], p.model.family, attention=p.model.attention.face)
        row = row.to(p.model.device)
        own = None if features is None else ImageFeatures.cat([features[owners[i]] for i in indices])
        of_row = torch.cat([advantages[i] for i in indices])
        with torch.no_grad():
            ref_logp = _logp(p.reference, row, own, levers)
        loss = _loss(p, row, own, of_row, ref_logp, levers)
        loss.backward()
        total += loss.detach()
    return total


def _encode(p: Problem) -> list[ImageFeatures]:
    row = build_row([Group(g.sample, ()) for g in p.groups], p.model.family).to(p.model.device)
    with torch.no_grad():
        encoded = p.model.encode_images(row.pixel_values, row.vision)
    return encoded.split([int((g.sample.prompt_ids == IMAGE).sum()) for g in p.groups])


def _eager_logp(model: PackedModel, row: Row, features: ImageFeatures | None, levers: Levers) -> torch.Tensor:
    weight, states = model.model.lm_head.weight, model.states(row, features)
    if levers.target_rows:
        logits = F.linear(states[row.target_rows], weight)
    else:
        logits = F.linear(states, weight)[row.target_rows]
    return logits.float().log_softmax(-1).gather(-1, row.target_ids[:, None])[:, 0]


def _logp(model: PackedModel, row: Row, features: ImageFeatures | None, levers: Levers) -> torch.Tensor:
    if levers.fused_loss and levers.target_rows:
        logp: torch.Tensor = model(row, logprob_head(row, 1.0), features)
        return logp
    return _eager_logp(model, row, features, levers)


def _loss(
    p: Problem, row: Row, features: ImageFeatures | None, advantages: torch.Tensor, ref_logp: torch.Tensor, on: Levers
) -> torch.Tensor:
    if not on.fused_loss:
        lengths = row.cu_seqlens.to(advantages.device, non_blocking=True).diff()
        spread = [x.repeat_interleave(lengths) for x in (advantages, 1 / (p.responses * lengths))]
        return eager_loss(_eager_logp(p.model, row, features, on), ref_logp, *spread)
    if not on.target_rows:
        logits = F.linear(p.model.states(row, features), p.model.model.lm_head.weight)[row.target_rows]
        more: dict[str, Any] = {"advantages": advantages, "ref_logp": ref_logp, "denominator": p.responses}
        return grpo_loss(logits, row.target_ids, row.cu_seqlens, config=CONFIG, **more).loss
    targets = RowTargets(advantages, torch.ones_like(advantages), ref_logp)
    loss: torch.Tensor = p.model(row, grpo_head(row, targets, p.responses, CONFIG), features).loss
    return loss
