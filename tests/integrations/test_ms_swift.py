"""The ms-swift drop-in, against its own methods on a small Qwen2-VL with images (hosts/ms_swift.py)."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from integrations.hosts.models import plain_model
from ops.peers.source import PEERS, methods, need
from pages import snippets
from tiny import VOCAB, random_sample

from univg_fast.integrations import ms_swift

VERSION = "4.6.0"
need("ms_swift", VERSION)
from integrations.hosts.ms_swift import make_trainer  # noqa: E402

LENGTHS = torch.tensor([7, 4, 1, 6, 2, 7, 3, 5])
REWARDS = torch.tensor([[0.9, 1], [0.2, 0], [0.4, 1], [0.0, 0], [0.1, 1], [0.3, 0], [0.8, 1], [0.7, 1]])


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ms-swift's version can be found, and nothing else that lies beside it."""
    name = f"ms_swift-{VERSION}.dist-info"
    (tmp_path / name).symlink_to(PEERS / name)
    monkeypatch.syspath_prepend(str(tmp_path))


def make_batch() -> tuple[dict[str, Any], Any]:
    """Two prompts of two images, four completions each; padded right, as ms-swift does to train."""
    rng, samples = np.random.default_rng(0), []
    for grids in ([(4, 6), (4, 4)], [(6, 4), (2, 8)]):
        samples += [random_sample(rng, grids)] * 4
    completions = [torch.from_numpy(rng.integers(6, 100, int(n))) for n in LENGTHS]
    rows = [torch.cat([torch.from_numpy(s.prompt_ids), c]) for s, c in zip(samples, completions, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    ends, starts = torch.tensor([len(r) for r in rows]), torch.tensor([len(s.prompt_ids) for s in samples])
    at = torch.arange(ids.shape[1])
    keep = int(ids.shape[1] - starts.min())
    mask = ((at >= starts[:, None]) & (at < ends[:, None]))[:, -keep:]
    pixels = [torch.from_numpy(s.pixel_values).view(-1, 3, 1, 196).expand(-1, -1, 2, -1).flatten(1) for s in samples]
    inputs = {
        "input_ids": ids,
        "attention_mask": (at < ends[:, None]).long(),
        "mm_token_type_ids": (ids == VOCAB["<|image_pad|>"]).int(),
        "pixel_values": torch.cat(pixels),
        "image_grid_thw": torch.cat([torch.from_numpy(s.image_grid_thw) for s in samples]),
    }
    old = -4.6 + 0.1 * torch.sin(torch.arange(mask.numel())).view(mask.shape)
    batch = SimpleNamespace(
        completion_mask=mask,
        truncated_mask=torch.zeros(8, dtype=torch.bool),
        seq_lengths=ends,
        logits_to_keep=keep,
        old_per_token_logps=old,
        rollout_per_token_logps=old - 0.1 * torch.cos(torch.arange(mask.numel())).view(mask.shape),
        num_items_in_batch=mask.sum(),
        teacher_per_token_logps=None,
    )
    return inputs, batch


def train(ours: bool, phi: dict[str, Any] | None = None, **settings: Any) -> tuple[Any, ...]:
    """Three steps: advantages, reference, loss and metrics are ms-swift's. -> losses, metrics, gradients of each."""
    model, reference = plain_model(), plain_model()
    reference.lm_head.weight = torch.nn.Parameter(1.1 * reference.lm_head.weight.detach())
    trainer, losses, gradients = make_trainer(model, **settings), [], []
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    with ms_swift.patch(trainer, **(phi or {})) if ours else contextlib.nullcontext():
        for _ in range(3):
            inputs, batch = make_batch()
            advantages = trainer._compute_advantages([], REWARDS, [])
            batch.advantages = advantages[:, None].expand(batch.completion_mask.shape)
            with torch.no_grad():
                batch.ref_per_token_logps = trainer._get_per_token_logps_and_entropies(reference, inputs, batch)[0]
            inputs, _ = make_batch()
            loss = trainer.compute_loss(model, {"model_inputs": inputs, "grpo_batch": batch})
            optimizer.zero_grad()
            loss.backward()
            losses.append(loss.item())
            gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
            optimizer.step()
    return losses, dict(trainer._metrics["train"]), gradients


def assert_same(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5, abs=1e-6)
    assert ours[1].keys() == theirs[1].keys()
    for name in ours[1]:
        mine, other = ([float(x) for x in side[1][name]] for side in (ours, theirs))
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-6), name
    for mine, other in zip(ours[2], theirs[2], strict=True):
        assert mine.keys() == other.keys()
        for name in mine:
            assert (mine[name] - other[name]).norm() <= 1e-5 * max(other[name].norm().item(), 1e-3), name


@pytest.mark.parametrize(
    "settings",
    [
        {"delta": 1.5, "top_entropy_quantile": 0.6},  # two things that ms-swift's Liger path refuses
        {"loss_type": "dapo", "rollout_importance_sampling_mode": "token_truncate", "epsilon_high": 0.28},
        {"loss_type": "cispo", "importance_sampling_level": "sequence", "epsilon_high": 2.0, "beta": 0.0},
    ],
    ids=["delta and entropy mask", "dapo", "cispo"],
)
def test_steps_are_the_hosts(settings: dict[str, Any]) -> None:
    theirs = train(False, **settings)
    assert_same(train(True, **settings), theirs)
    assert len(set(theirs[0])) == 3 and "entropy/mean" in theirs[1]


def test_the_snippet_of_the_docs() -> None:
    trainer, found, space = make_trainer(plain_model()), [], dict[str, Any]()
    trainer.train = lambda: found.append(trainer._compute_advantages([], REWARDS, []))
    exec(snippets("ms-swift")[0], space)
    space["train"](trainer)
    trainer.train()
    weighted, plain = found
    assert 1 < trainer._metrics["train"]["difficulty_weight"][0] < 2.7183 and not torch.allclose(weighted, plain)


@pytest.mark.parametrize(("difficulty", "power"), [("exp", 1.0), ("power", 2.0)])
def test_phi_is_the_formula(difficulty: str, power: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose advantages come with the weight, worked out here in fp64, against the drop-in's by name."""
    miou = REWARDS[:, 0].double().view(2, 4).mean(1)
    weight = {"exp": (1 - miou).exp(), "power": (1.05 - miou) ** power}[difficulty]
    total = REWARDS.sum(1).double().view(2, 4)
    plain = (total - total.mean(1, keepdim=True)) / (total.std(1, keepdim=True) + 1e-4)
    formula = (plain * weight[:, None]).flatten()
    trainer = make_trainer(plain_model())
    options = {"phi": "iou", "difficulty": difficulty, "difficulty_power": power}
    with ms_swift.patch(trainer, **options):
        torch.testing.assert_close(trainer._compute_advantages([], REWARDS, []).double(), formula, rtol=1e-5, atol=1e-6)
    assert trainer._metrics["train"]["difficulty_weight"] == [pytest.approx(weight.mean().item(), rel=1e-6)]
    ours = train(True, options)
    del ours[1]["difficulty_weight"]
    theirs = type(trainer)._compute_advantages
    monkeypatch.setattr(type(trainer), "_compute_advantages", lambda self, *a: theirs(self, *a) * 0 + formula.float())
    assert_same(ours, train(False))


def test_a_completion_without_a_value_is_left_out_of_the_mean() -> None:
    """ms-swift makes NaN of a None, and sums without it."""
    rewards = REWARDS.clone()
    rewards[1, 0], rewards[4:, 0] = torch.nan, torch.nan
    trainer = make_trainer(plain_model())
    theirs = trainer._compute_advantages([], rewards, []).double()
    with ms_swift.patch(trainer, phi="iou"):
        ours = trainer._compute_advantages([], rewards, []).double()
    weight = torch.ones(8, dtype=torch.float64)
    weight[:4] = (1 - rewards[[0, 2, 3], 0].double().mean()).exp()
    torch.testing.assert_close(ours, theirs * weight, rtol=1e-5, atol=1e-6)
    assert theirs.abs().max() > 0.5


@pytest.mark.parametrize("phi", [None, "iou"])
def test_evaluation_is_the_hosts(phi: str | None) -> None:
    """TRL's `prediction_step`, which ms-swift inherits: eval mode, no gradients, groups of num_generations_eval."""
    predict = vars(methods("trl/trainer/grpo_trainer.py", "GRPOTrainer", "prediction_step"))["prediction_step"]
    miou, found = REWARDS[:, 0].double().view(4, 2).mean(1), []
    weight = (1 - miou).exp() if phi else torch.ones(4, dtype=torch.float64)
    for ours in (True, False):
        trainer = make_trainer(plain_model().eval())
        trainer.compute_loss_context_manager = contextlib.nullcontext

        def generate(_: Any, trainer: Any = trainer, ours: bool = ours) -> Any:
            inputs, batch = make_batch()
            advantages = trainer._compute_advantages([], REWARDS, [])
            if not ours:
                advantages = (advantages * weight.repeat_interleave(2)).float()
            batch.advantages = advantages[:, None].expand(batch.completion_mask.shape)
            batch.ref_per_token_logps = batch.old_per_token_logps + 0.2
            return [{"model_inputs": inputs, "grpo_batch": batch}]

        trainer._generate_and_score_completions = generate
        with ms_swift.patch(trainer, phi=phi) if ours else contextlib.nullcontext():
            loss = predict(trainer, trainer.model, [], True)[0]
        assert not loss.requires_grad and not trainer._metrics["train"]
        found.append(([loss.item()], dict(trainer._metrics["eval"]), []))
    if phi:
        assert found[0][1].pop("difficulty_weight") == [pytest.approx(weight.mean().item(), rel=1e-6)]
    assert_same(*found)
    assert abs(found[1][0][0]) > 1e-3 and found[1][1]["kl"][0] > 0


def test_without_padding_the_row_is_scored_whole() -> None:
    """padding_free: all sequences in one row, of which the last logits_to_keep tokens are scored."""
    rng, model = np.random.default_rng(1), plain_model()
    ids = torch.from_numpy(rng.integers(6, 100, (1, 30)))
    positions = torch.cat([torch.arange(n) for n in (12, 8, 10)]).expand(4, 1, -1)
    trainer = make_trainer(model, padding_free=True)
    found = []
    for ours in (True, False):
        with ms_swift.patch(trainer) if ours else contextlib.nullcontext():
            inputs = {"input_ids": ids, "position_ids": positions}
            found.append(trainer._get_logps_via_local_forward(model, inputs, 25, ids, compute_entropy=True))
    for mine, other in zip(*found, strict=True):
        assert mine.shape == other.shape == (1, 25)
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_only_tokens_that_are_not_padding_meet_the_vocabulary() -> None:
    model, shapes = plain_model(), []
    trainer, (inputs, batch) = make_trainer(model), make_batch()
    rows = int(inputs["attention_mask"][:, -batch.logits_to_keep :].sum())
    before = set(vars(trainer)), [set(vars(part)) for part in model.modules() if part is not model.model]
    model.lm_head.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    with ms_swift.patch(trainer, phi="iou"):
        with pytest.raises(ValueError, match="patched already"):
            ms_swift.patch(trainer)
        trainer._get_per_token_logps_and_entropies(model, inputs, batch)
    assert shapes == [(1, rows, 2)] and rows < batch.completion_mask.numel()
    assert before == (set(vars(trainer)), [set(vars(part)) for part in model.modules() if part is not model.model])


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(plain_model())
    with pytest.raises(ValueError, match="'miou'; the trainer has iou, format"):
        ms_swift.patch(trainer, phi="miou")
    with monkeypatch.context() as context, pytest.raises(ValueError, match="loss_type 'real'"):
        context.setattr(trainer, "loss_type", "real")
        ms_swift.patch(trainer, phi="iou")
    with pytest.raises(ValueError, match="'log' is negative"):
        ms_swift.patch(trainer, phi="iou", difficulty="log")
    with monkeypatch.context() as context, pytest.raises(ValueError, match="kl_in_reward=True with beta=0.04 puts KL"):
        context.setattr(trainer, "kl_in_reward", True)
        ms_swift.patch(trainer, phi="iou")
    monkeypatch.setattr(ms_swift, "TESTED", ("4.5",))
    with pytest.raises(ValueError, match=rf"ms-swift {VERSION} is installed.*4\.5"):
        ms_swift.patch(trainer)
    monkeypatch.undo()


def test_a_rollout_whose_trajectories_are_cut_is_refused() -> None:
    """ms-swift tells it rollout by rollout, long after the patch: rows are no longer num_generations of each prompt."""
    trainer = make_trainer(plain_model())
    with ms_swift.patch(trainer, phi="iou"):
        trainer._compute_advantages([], REWARDS, [])
        trainer.dynamic_num_samples = True
        with pytest.raises(ValueError, match="num_generations completions of each prompt, got a rollout"):
            trainer._compute_advantages([], REWARDS, [])
        trainer.dynamic_num_samples = False
        trainer._compute_advantages([], REWARDS, [])
    assert len(trainer._metrics["train"]["difficulty_weight"]) == len(trainer._metrics["train"]["reward"]) == 2


def test_a_host_that_scores_in_another_way_is_refused() -> None:
    trainer = make_trainer(plain_model())
    trainer.use_liger_loss = True
    with pytest.raises(ValueError, match="use_liger_kernel"):
        ms_swift.patch(trainer)
    trainer.use_liger_loss, trainer.template.sequence_parallel_size = False, 2
    with pytest.raises(ValueError, match="sequence_parallel_size must be 1, got 2"):
        ms_swift.patch(trainer)
    trainer._get_logps_via_local_forward = lambda model, model_inputs: None
    with pytest.raises(ValueError, match="no parameter logits_to_keep"):
        ms_swift.patch(trainer)
