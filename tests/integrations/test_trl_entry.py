"""Entry and exit of TRL's drop-in: what it refuses, what it leaves to the host, and that everything is put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="of the extra [dev]")
import trl.trainer.utils as trl_utils
from integrations import trl_problem
from trl import GRPOTrainer
from trl.experimental.gmpo import GMPOTrainer

from univg_fast.integrations.trl import patch, patch_logprobs
from univg_fast.integrations.trl_rows import make_config


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trl_problem.trainer(tmp_path_factory.mktemp("trl"))


def test_what_asks_for_more_than_log_probs_stays_the_hosts() -> None:
    hidden, weight, ids = torch.randn(5, 8), torch.randn(11, 8), torch.arange(5)
    arguments = (hidden, weight, None, ids, 0.7, 4, None, 1.0, ("log_probs", "is_top1"))
    theirs = trl_utils._ChunkedLogProbFunction.apply(*arguments)
    with patch_logprobs():
        ours = trl_utils._ChunkedLogProbFunction.apply(*arguments)
    assert torch.equal(ours[4], theirs[4]) and torch.equal(ours[0], theirs[0])


def test_everything_is_put_back(trainer: Any) -> None:
    before, function = set(vars(trainer)), trl_utils._ChunkedLogProbFunction
    with patch(trainer, phi="iou"):
        assert trl_utils._ChunkedLogProbFunction is not function
        with pytest.raises(ValueError, match=r"LogProbFunction is patched already.*what its patch\(\) returned"):
            patch(trainer)  # also where it is a second trainer: TRL's head is one for all
        with pytest.raises(ValueError, match="patched already"):
            patch_logprobs()
    assert set(vars(trainer)) == before and trl_utils._ChunkedLogProbFunction is function
    assert trl_utils._use_triton(torch.device("cpu")) is False


def test_refused_at_entry(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="one of the reward functions iou, short, got 'giou'"):
        patch(trainer, phi="giou")
    with pytest.raises(ValueError, match="difficulty must be one of"):
        patch(trainer, phi="iou", difficulty="cubic")
    with pytest.raises(ValueError, match=r"takes a trl\.GRPOTrainer, got dict"):
        patch({})
    monkeypatch.setattr(trainer, "loss_type", "reinforce")
    with pytest.raises(ValueError, match="loss_type must be one of grpo, bnpo, .* got 'reinforce'"):
        patch(trainer)
    monkeypatch.setattr(trainer.args, "fp16", True)
    with pytest.raises(ValueError, match="fp16=True is not supported"):
        patch(trainer)
    assert "_compute_loss" not in vars(trainer)


@pytest.mark.parametrize("method", ["compute_loss", "_compute_loss", "_get_per_token_logps_and_entropies"])
def test_a_loss_of_ones_own_is_refused(trainer: Any, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = type("Mine", (GRPOTrainer,), {method: lambda self, *args, **more: torch.zeros(())})
    monkeypatch.setattr(trainer, "__class__", mine)
    with pytest.raises(ValueError, match=f"Mine has a {method} of its own"):
        patch(trainer)


def test_gmpo_is_told_by_its_loss_and_not_by_a_name(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for base, name, loss_type in ((GRPOTrainer, "GMPOTrainer", "dapo"), (GMPOTrainer, "Mine", "gmpo")):
        monkeypatch.setattr(trainer, "__class__", type(name, (base,), {}))
        assert make_config(trainer).loss_type == loss_type


@pytest.mark.parametrize("version", ["0.28.0", "1.15.0", "1.17.0"])
def test_another_release_is_refused(trainer: Any, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda package: version)
    words = rf"trl {version} is installed, .* 0\.29, 1\.0, .* 1\.13, 1\.16; pip install \"trl==1\.16\.\*\""
    with pytest.raises(ValueError, match=words):
        patch(trainer)
