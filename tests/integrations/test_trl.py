"""A step of TRL's own GRPOTrainer, with and without the drop-in: loss, gradients, metrics; φ against its formula."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from itertools import product
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="of the extra [dev]")
from integrations import trl_problem
from integrations.trl_problem import Run, assert_same
from torch import Tensor
from trl.experimental.gmpo import GMPOTrainer

from univg_fast.integrations.trl import patch, patch_logprobs
from univg_fast.integrations.trl_rows import LOSSES

PPO = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Before its first step."""
    made = trl_problem.trainer(tmp_path_factory.mktemp("trl"))
    made.current_gradient_accumulation_steps = 2
    made.model.train()
    return made


@pytest.fixture(scope="module")
def inputs(trainer: Any) -> dict[str, Any]:
    """What TRL samples and scores, and besides: log-probs of an older policy and of a sampler, and words of a tool."""
    torch.manual_seed(1)
    batch = trainer._generate_and_score_completions(
        [{"prompt": name} for name in trl_problem.NAMES[:2] for _ in range(4)]
    )
    logps = batch["ref_per_token_logps"]
    batch["ref_per_token_logps"] = logps + 0.4 * torch.randn_like(logps)
    with torch.no_grad():
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        own = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, logps.shape[1])[0]
    batch["old_per_token_logps"] = own + 0.3 * torch.randn_like(own)
    batch["sampling_per_token_logps"] = batch["old_per_token_logps"] + 0.2 * torch.randn_like(own)
    batch["tool_mask"] = (torch.rand_like(own) > 0.15).long()
    mask = batch["completion_mask"]
    mask[1, 3:], mask[2], mask[5, 6:] = 0, 0, 0  # ends, and one that is left out for its length
    return batch


@pytest.fixture
def settings(trainer: Any) -> Iterator[None]:
    """What a test sets on the trainer and its arguments goes away again."""
    before, arguments = dict(vars(trainer)), dict(vars(trainer.args))
    yield
    vars(trainer).clear()
    vars(trainer).update(before)
    vars(trainer.args).clear()
    vars(trainer.args).update(arguments)


def step(trainer: Any, batch: dict[str, Any]) -> Run:
    """One loss and its gradients."""
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    logged = {name: values[0] for name, values in trainer._metrics["train"].items()}
    return [logged | {"loss": loss.item()}], [{n: p.grad.clone() for n, p in trainer.model.named_parameters()}]


def check(trainer: Any, batch: dict[str, Any], **set_to: Any) -> Run:
    for name, value in set_to.items():
        setattr(trainer.args if name in vars(trainer.args) and name not in vars(trainer) else trainer, name, value)
    trainer._entropy_bonus_enabled = bool(trainer.entropy_coef)
    theirs = step(trainer, batch)
    with patch(trainer):
        ours = step(trainer, batch)
    assert_same(ours, theirs)
    assert any(gradient.any() for gradient in theirs[1][0].values())
    return ours


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_gradients_and_metrics_are_the_hosts(trainer: Any, inputs: dict[str, Any], loss_type: str) -> None:
    high = {"cispo": 1.1}.get(loss_type, 0.15)
    for level, (coef, quantile), drift in product(("token", "sequence"), ((0.0, 1.0), (0.02, 0.6)), (None, 0.02)):
        check(
            trainer,
            inputs,
            loss_type=loss_type,
            importance_sampling_level=level,
            epsilon_low=0.1,
            epsilon_high=high,
            entropy_coef=coef,
            top_entropy_quantile=quantile,
            off_policy_mask_threshold=drift,
            delta=1.1 if loss_type in PPO and drift else None,
        )


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "vespo"])
def test_the_samplers_importance_ratio(trainer: Any, inputs: dict[str, Any], loss_type: str) -> None:
    mask = inputs["completion_mask"] * inputs["tool_mask"]
    difference = (inputs["old_per_token_logps"] - inputs["sampling_per_token_logps"]) * mask
    for ratio in (difference.exp(), difference.sum(1, keepdim=True).exp()):
        ratio = ratio.masked_fill(ratio > 1.2, 0)
        assert (ratio == 0).any()
        batch = inputs | {"importance_sampling_ratio": ratio}
        check(trainer, batch, loss_type=loss_type, use_vllm=True, vllm_importance_sampling_correction=True)


@pytest.mark.usefixtures("settings")
def test_on_policy_advantages_per_token_no_kl_and_nothing_that_counts(trainer: Any, inputs: dict[str, Any]) -> None:
    new = {k: v for k, v in inputs.items() if k not in ("old_per_token_logps", "ref_per_token_logps", "tool_mask")}
    check(trainer, new, beta=0.0)
    check(trainer, new | {"advantages": torch.randn(inputs["completion_ids"].shape)}, beta=0.0)
    check(trainer, inputs, loss_type="bnpo", use_bias_correction_kl=False)
    nothing = inputs | {"completion_mask": torch.zeros_like(inputs["completion_mask"])}
    with patch(trainer):
        logged, (gradients,) = step(trainer, nothing)
    assert logged[0]["loss"] == 0 and not any(g.any() for g in gradients.values())


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("quantile", [1.0, 0.6])
def test_gmpo_with_a_completion_that_does_not_count(
    trainer: Any, inputs: dict[str, Any], quantile: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is masked for its length, and one of a tool's words only: TRL counts a constant for each."""
    monkeypatch.setattr(trainer, "__class__", GMPOTrainer)
    inputs = inputs | {"tool_mask": inputs["tool_mask"].clone()}
    inputs["tool_mask"][6] = 0
    assert not (inputs["completion_mask"] * inputs["tool_mask"])[[2, 6]].any() and inputs["advantages"][[2, 6]].all()
    check(trainer, inputs, epsilon_low=0.4, epsilon_high=0.3, top_entropy_quantile=quantile)
    phi = torch.tensor([1.7, 1.7, 1.7, 1.7, 0.4, 0.4, 0.4, 0.4])
    theirs = step(trainer, inputs | {"advantages": inputs["advantages"] * phi})
    with patch(trainer):
        assert_same(step(trainer, inputs | {"phi": phi}), theirs)


def by_formula(trainer: Any, batch: dict[str, Any], phi: Tensor) -> tuple[float, dict[str, Tensor]]:
    """mean_i (1/|o_i|) sum_t (phi_i · -min(r A, clip(r) A) + beta · k3), over 2 accumulated steps, in fp64."""
    model = deepcopy(trainer.model).double()
    del model.forward  # transformers' own, with logits
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    length, mask = batch["completion_ids"].shape[1], batch["completion_mask"] * batch["tool_mask"]
    logits = model(input_ids=ids, attention_mask=attention).logits[:, -length - 1 : -1] / trainer.temperature
    logp = logits.log_softmax(-1).gather(-1, batch["completion_ids"][..., None])[..., 0]
    ratio = (logp - batch["old_per_token_logps"]).exp()
    advantage = batch["advantages"].double()[:, None]
    clipped = ratio.clamp(1 - trainer.epsilon_low, 1 + trainer.epsilon_high)
    difference = batch["ref_per_token_logps"] - logp
    kl = (difference.exp() - difference - 1) * ratio
    terms = -phi.double()[:, None] * torch.min(ratio * advantage, clipped * advantage) + trainer.beta * kl
    loss = ((terms * mask).sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.usefixtures("settings")
def test_phi_weighs_the_policy_term_as_the_formula_says(trainer: Any, inputs: dict[str, Any]) -> None:
    phi = torch.tensor([1.7, 1.7, 0.4, 0.4, -0.3, -0.3, 1.0, 2.0])  # "log" goes below 0
    trainer.loss_type = "grpo"
    loss, gradients = by_formula(trainer, inputs, phi)
    with patch(trainer):
        logged, (ours,) = step(trainer, inputs | {"phi": phi})
    assert logged[0]["loss"] == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        assert (ours[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
    plain, _ = by_formula(trainer, inputs, torch.ones(8))
    assert abs(plain - loss) > 1e-3 * abs(loss)


@pytest.mark.usefixtures("settings")
def test_phi_comes_from_the_reward_of_that_name(trainer: Any) -> None:
    scored: list[Tensor] = []
    prompts = [{"prompt": name} for name in trl_problem.NAMES[:2] for _ in range(4)]
    plain = trainer._calculate_rewards

    def some_unknown(*args: Any) -> Tensor:
        rewards = plain(*args)
        rewards[0, 0] = torch.nan  # the function gave None
        scored.append(rewards)
        return rewards

    trainer._calculate_rewards = some_unknown
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    with patch(trainer, phi="iou", difficulty="power", difficulty_power=2.0):
        phi = trainer._generate_and_score_completions(prompts)["phi"]
    iou = scored[0][:, 0]
    expected = torch.stack([(1.05 - group[~group.isnan()].mean()) ** 2 for group in (iou[:4], iou[4:])])
    torch.testing.assert_close(phi, expected.repeat_interleave(4))
    assert trainer._metrics["train"]["difficulty_weight"] == pytest.approx([expected.mean().item()])
    assert trainer._metrics["train"]["miou"] == pytest.approx([(iou[1:4].mean() / 2 + iou[4:].mean() / 2).item()])
    assert "phi" not in trainer._generate_and_score_completions(prompts)


@pytest.mark.usefixtures("settings")
def test_a_batch_that_lost_its_phi_is_refused(trainer: Any, inputs: dict[str, Any]) -> None:
    with patch(trainer, phi="iou"), pytest.raises(ValueError, match=r"batch without 'phi'.*the batch has prompt_ids, "):
        step(trainer, inputs)


@pytest.mark.usefixtures("settings")
def test_no_row_of_logits_is_made_of_prompts_or_padding(
    trainer: Any, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from univg_fast.integrations import trl_head

    seen = []
    kernel = trl_head.linear_grpo_loss

    def watched(hidden: Tensor, *args: Any, **rows: Any) -> Any:
        seen.append(len(hidden))
        return kernel(hidden, *args, **rows)

    monkeypatch.setattr(trl_head, "linear_grpo_loss", watched)
    with patch(trainer):
        step(trainer, inputs)
    assert seen == [int(inputs["completion_mask"].sum())]


@pytest.mark.usefixtures("settings")
def test_log_probs_only(trainer: Any, inputs: dict[str, Any]) -> None:
    trainer.entropy_coef, trainer._entropy_bonus_enabled = 0.02, True
    theirs = step(trainer, inputs)
    with patch_logprobs():
        ours = step(trainer, inputs)
    assert_same(ours, theirs)
