"""A step's loss and gradients are those of all its responses at once, however ranks and rows share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tiny import WORDS, random_sample, tiny_model
from univg_kernels import policy_loss

from univg_fast.config import Config, GrpoStageConfig, ModelConfig, PackConfig
from univg_fast.config.losses import loss_config
from univg_fast.loss import grpo_head
from univg_fast.loss.grpo import denominator
from univg_fast.model import ImageFeatures, PackedModel
from univg_fast.packing import build_row
from univg_fast.packing.plan import PATCH, SEEN
from univg_fast.structs import Completion, Group, Sample
from univg_fast.train.choice import choose, enough
from univg_fast.train.draws import Drawn
from univg_fast.train.minibatch import MiniBatch, make_minibatches
from univg_fast.train.rows import Builder, OverBudget
from univg_fast.train.scoring import Place, Sampled, Scored, concatenated, score_draw, settled

GRIDS = [[(4, 6)], [], [(4, 4), (2, 4)], [], [(2, 6)]]
BOXES = [(0, 0, 500, 500), (0, 0, 500, 400), (100, 0, 500, 500), (600, 600, 900, 900)]
KINDS = [
    *[{"loss_type": name} for name in ("grpo", "bnpo", "dr_grpo", "dapo", "sapo", "luspo", "vespo", "gmpo")],
    {"loss_type": "cispo", "epsilon_high": 5.0},
    {"loss_type": "reinforce"},
    *[{"loss_type": "grpo", "importance_sampling_level": level} for level in ("sequence", "sequence_token")],
    {"loss_type": "dapo", "importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    {"loss_type": "grpo", "scale_rewards": "batch", "difficulty": "power", "normalize_difficulty": True},
    {"loss_type": "dr_grpo", "scale_rewards": "none", "mask_truncated_completions": True},
    {"loss_type": "dapo", "mask_truncated_completions": True},
    {"loss_type": "grpo", "mask_truncated_completions": True, "loss_options": {"count_empty_responses": False}},
    {"loss_type": "grpo", "loss_options": {"importance_sampling_mode": "token_truncate", "delta": 1.1}},
    {"loss_type": "gmpo", "loss_options": {"importance_sampling_mode": "sequence_mask", "kl_estimator": "k2"}},
    {"loss_type": "dapo", "loss_options": {"off_policy_mask_threshold": 0.0}},
    {"loss_type": "grpo", "loss_options": {"entropy_coef": 0.1, "entropy_aggregation": "loss"}},
]


@cache
def the_model() -> PackedModel:
    return tiny_model()


@cache
def prompts() -> list[tuple[Sample, list[Completion]]]:
    """Five prompts with three completions each; the second has equal rewards, one prompt has only truncated ones."""
    rng = np.random.default_rng(0)
    made = []
    for k, grids in enumerate(GRIDS):
        sample = random_sample(rng, grids, uid=f"u{k}")
        group = []
        for j in range(3):
            n = int(rng.integers(1, 9))
            box = BOXES[3] if k == 1 else BOXES[(j + k) % 4]
            text = "<think>a</think><answer>({},{}),({},{})</answer>".format(*box)
            logprobs = (-4.6 + 0.3 * rng.standard_normal(n)).astype(np.float32)
            finish = "length" if k == 3 or (k + j) % 4 == 0 else "stop"
            group.append(Completion(rng.choice(WORDS, n).astype(np.int64), logprobs, finish, text))
        made.append((sample, group))
    return made


def config_of(kind: dict[str, Any], budget: int = 10_000) -> Config:
    settings: dict[str, Any] = {"num_generations": 3, "beta": 0.1, "max_completion_length": 12} | kind
    return Config(grpo=GrpoStageConfig(**settings), pack=PackConfig(budget_tokens=budget))


def scored_by(config: Config, numbers: Sequence[int]) -> Scored:
    chosen = [prompts()[k] for k in numbers]
    return score_draw(Sampled([s for s, _ in chosen], [c for _, c in chosen], None), [], config, "norm1000")


def test_an_update_costs_patches_only_where_the_tower_sees_them_again() -> None:
    config = config_of({})
    scored, trains = scored_by(config, [0]), replace(config, model=ModelConfig(freeze_vision_tower=False))
    kept = replace(scored, features=[ImageFeatures(torch.zeros(6, 8))])  # of 24 patches
    without = kept.size(0, [0, 1], config).cost
    assert without == kept.size(0, [0, 1], trains).cost
    assert scored.size(0, [0, 1], config).cost - without == pytest.approx(24 * SEEN)
    assert scored.size(0, [0, 1], trains).cost - without == pytest.approx(24 * PATCH)


def rank_of(config: Config, held: list[list[int]], rank: int, wanted: int | None = None) -> list[MiniBatch]:
    """The mini-batches of a rank, where ranks hold these prompts."""
    parts = [scored_by(config, numbers) for numbers in held]
    facts = [
        [part.facts(i, Place(0, k, "f"), config) for i, k in enumerate(numbers)]
        for part, numbers in zip(parts, held, strict=True)
    ]
    choice = choose(facts, rank, config.grpo.steps_per_generation, wanted)
    scored = settled(parts[rank], choice, loss_config(config.grpo))
    drawn = Drawn(scored, scored, choice, 1, 1, 0, [])
    build = Builder.of(the_model())
    spare = build.row([Group(prompts()[1][0], (WORDS[:1],))])
    minibatches, _ = make_minibatches(drawn, config, build, OverBudget(10_000), spare)
    for row in (row for minibatch in minibatches for row in minibatch.rows):
        row.targets.old_logp, row.targets.ref_logp = other_policies(row.sampled)
    return minibatches


def other_policies(sampled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of two more policies, known wherever a token lies."""
    return sampled * 0.98 - 0.1, sampled * 1.03 + 0.05


def step(config: Config, held: list[list[int]], share: int = 0) -> tuple[float, int, torch.Tensor]:
    """Loss, rows and a gradient of all ranks."""
    model, loss, count, options = the_model(), 0.0, 0, loss_config(config.grpo)
    model.zero_grad()
    for rank in range(len(held)):
        minibatch = rank_of(config, held, rank)[share]
        divisor = denominator(options, minibatch.responses, minibatch.tokens)
        for row in minibatch.rows:
            output = model(row.row, grpo_head(row.row, row.targets, divisor, options), row.features)
            output.loss.backward()
            loss, count = loss + output.loss.item(), count + 1
    grad = model.model.model.language_model.norm.weight.grad
    return loss, count, torch.zeros(1) if grad is None else grad


def everything_at_once(config: Config, numbers: Sequence[int]) -> tuple[float, torch.Tensor]:
    """The kernels' own advantages, difficulty, normalisers and loss, of all responses in one call."""
    model, chosen = the_model(), [prompts()[k] for k in numbers]
    model.zero_grad()
    completions = [c for _, group in chosen for c in group]
    row = build_row([Group(s, tuple(c.token_ids for c in group)) for s, group in chosen], model.family)
    logits = model.hidden(row) @ model.model.lm_head.weight.T
    distribution = logits.log_softmax(-1)
    logp = distribution.gather(1, row.target_ids[:, None])[:, 0]
    scores = scored_by(config, numbers).scores
    kept = [not (config.grpo.mask_truncated_completions and c.finish == "length") for c in completions]
    sampled = torch.from_numpy(np.concatenate([c.logprobs for c in completions]))
    old, ref = other_policies(sampled)
    options = loss_config(config.grpo)
    more = options.importance_sampling_mode != "none" or options.off_policy_mask_threshold is not None
    output = policy_loss(
        logp,
        row.cu_seqlens,
        entropy=-(distribution.exp() * distribution).sum(-1),
        config=options,
        rewards=torch.from_numpy(scores.total),
        accuracy=torch.from_numpy(scores.parts["iou"]),
        cu_groups=torch.tensor([0, *(len(group) for _, group in chosen)]).cumsum(0),
        old_logp=old,
        ref_logp=ref,
        sampling_logp=sampled if more else None,
        mask=torch.tensor(kept).repeat_interleave(row.cu_seqlens.diff()),
    )
    output.loss.backward()
    return output.loss.item(), model.model.model.language_model.norm.weight.grad


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_any_ranks_and_rows_give_the_loss_of_everything_at_once(kind: dict[str, Any]) -> None:
    want, gradient = everything_at_once(config_of(kind), range(5))
    assert gradient.abs().max() > 1e-3, "nothing to compare"
    rows = []
    for held, budget in (([[0, 1, 2, 3, 4]], 10_000), ([[0, 1, 2, 3, 4]], 30), ([[4, 1], [0, 3, 2]], 40)):
        loss, count, grad = step(config_of(kind, budget), held)
        assert loss == pytest.approx(want, rel=1e-5, abs=1e-6)
        torch.testing.assert_close(grad, gradient, rtol=1e-4, atol=1e-6)
        rows.append(count)
    assert rows[0] == 1 and min(rows[1:]) > 3


def test_groups_of_equal_rewards_can_be_left_out() -> None:
    """They have no gradient but of their KL term, and count all the same."""
    kept, dropped = ({"loss_type": "dapo", "beta": 0.0, "zero_std_groups": how} for how in ("keep", "drop"))
    loss, rows, grad = step(config_of(kept, 1), [[0, 1], [2, 3, 4]])
    less, fewer, same = step(config_of(dropped, 1), [[0, 1], [2, 3, 4]])
    assert rows > fewer and less == pytest.approx(loss, abs=1e-7)
    torch.testing.assert_close(same, grad, rtol=1e-5, atol=1e-7)


def test_steps_per_generation_share_out_the_prompts() -> None:
    """Each is a step of its own prompts, with normalisers of its own; which they are hangs on no rank."""
    kind = {"loss_type": "dapo", "scale_rewards": "none", "difficulty": "none"}
    config = config_of(kind | {"steps_per_generation": 2})
    for share, numbers in enumerate(([0, 1], [2, 3, 4])):
        want, gradient = everything_at_once(config_of(kind), numbers)
        for held in ([[0, 1, 2, 3, 4]], [[4, 1], [0, 3, 2]], [[0, 1], [2, 3, 4]]):
            loss, _, grad = step(config, held, share)
            assert loss == pytest.approx(want, rel=1e-5, abs=1e-6)
            torch.testing.assert_close(grad, gradient, rtol=1e-4, atol=1e-6)


def test_a_rank_may_have_nothing_and_all_may() -> None:
    config = config_of({"zero_std_groups": "drop"})
    (first,), (second,) = (rank_of(config, [[0], [1]], rank) for rank in (0, 1))
    assert [len(first.rows), len(second.rows), second.passes] == [1, 0, 1] and first.responses == 6
    (nothing,) = rank_of(config, [[1]], 0)
    assert nothing.empty and nothing.rows == [] and not first.empty
    (neither,) = rank_of(config, [[0, 1], [2]], 0, wanted=0)
    assert neither.empty and denominator(loss_config(config.grpo), neither.responses, neither.tokens) == 1


@pytest.mark.parametrize(("masked", "kept"), [(False, [0, 2, 3, 4]), (True, [0, 2, 4])])
def test_a_group_whose_responses_are_all_cut_short_is_drawn_in_vain(masked: bool, kept: list[int]) -> None:
    """Where those have no loss: the fourth's rewards differ, and it has no gradient all the same."""
    config = config_of({"loss_type": "dapo", "mask_truncated_completions": masked})
    scored = scored_by(config, range(5))
    facts = [scored.facts(k, Place(0, k, "f"), config) for k in range(5)]
    assert scored.varied(3) and enough([facts], len(kept)) and not enough([facts], len(kept) + 1)
    choice = choose([facts], 0, 1, 5)
    assert choice.shares[0].groups == kept and choice.prompts == len(kept)


def test_draws_are_put_together() -> None:
    config = config_of({})
    both, whole = concatenated([scored_by(config, [0, 1]), scored_by(config, [2])]), scored_by(config, [0, 1, 2])
    assert [s.record.uid for s in both.samples] == ["u0", "u1", "u2"] and len(both.completions) == 3
    for name in ("advantages", "phi", "miou", "reward_std"):
        assert torch.equal(getattr(both, name), getattr(whole, name))
    assert np.array_equal(both.scores.total, whole.scores.total) and both.scores.boxes == whole.scores.boxes
    assert all(np.array_equal(both.scores.parts[name], part) for name, part in whole.scores.parts.items())
    assert replace(both, bad=[]).facts(2, Place(0, 0, ""), config) == whole.facts(2, Place(0, 0, ""), config)
