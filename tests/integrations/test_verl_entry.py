"""The verl drop-in where verl need not be: what it refuses, and the op of verl's Triton backend, which needs a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from univg_kernels import GrpoConfig

from univg_fast.integrations import verl, verl_phi


def test_the_op_of_the_triton_backend() -> None:
    """Held against log-softmax in fp64. It flattens what it is given."""
    g = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*shape, generator=g).requires_grad_() for shape in ((2, 5, 8), (30, 8)))
    labels = torch.randint(30, (2, 5), generator=g)
    logp, entropy = verl._linear_cross_entropy(hidden, weight, labels, 0.7, "none")
    upstream = torch.randn(2, 10, generator=g)
    grads = torch.autograd.grad((torch.stack([logp, entropy]) * upstream).sum(), (hidden, weight))
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    every = (exact[0].flatten(0, 1) @ exact[1].T / 0.7).log_softmax(-1)
    expected = torch.stack([every.gather(-1, labels.view(-1, 1))[:, 0], -(every.exp() * every).sum(-1)])
    torch.testing.assert_close(torch.stack([logp, entropy]).double(), expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(grads, torch.autograd.grad((expected * upstream).sum(), exact), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def pretend(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    info = folder / f"verl-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: verl\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(folder))


def test_another_verl_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, monkeypatch, "0.7.0")
    with pytest.raises(ValueError, match=r"verl 0\.7\.0 is installed, .* tested with 0\.9"):
        verl.patch()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon_low": 0.1}, "epsilon_low by actor.clip_ratio_low"),
        ({"lost_type": "cispo"}, "lost_type is no setting"),
        ({"kl_estimator": "k1"}, "kl_estimator is no setting that verl's policy losses would see"),
        ({"top_entropy_quantile": 0.5, "softcap": 30.0}, "softcap, top_entropy_quantile is no setting"),
        ({"loss_type": "dr_grpo"}, "set actor.loss_agg_mode=seq-mean-token-sum-norm"),
        ({"loss_type": "luspo"}, r"set actor.loss_agg_mode=seq-mean-token-sum$"),
        ({"loss_type": "bnpo"}, r"set actor.loss_agg_mode=token-mean$"),
        ({"loss_type": "dapo"}, r"set actor.loss_agg_mode=token-mean$"),
        ({"difficulty": "hard"}, "difficulty must be one of"),
        ({"loss_type": "gmpo", "importance_sampling_level": "sequence"}, "importance_sampling_level='token'"),
    ],
)
def test_wrong_settings(
    settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(tmp_path, monkeypatch, "0.9.1")
    with pytest.raises(ValueError, match=message):
        verl.patch(**settings)


def phi_of(data: dict[str, list[Any]]) -> list[float]:
    return verl_phi.Weights("iou", GrpoConfig(normalize_difficulty=True)).of(data, None).tolist()


def test_copies_that_fill_up_a_batch_are_no_prompt() -> None:
    """Of the first completion, under one more uid."""
    data: dict[str, list[Any]] = {"uid": ["a", "b", "a", "b"], "iou": [0.9, 0.2, 0.5, 0.4]}
    padded = {"uid": [*data["uid"], "padf00", "padf00"], "iou": [*data["iou"], 0.9, 0.9]}
    assert phi_of(padded)[:4] == phi_of(data) != [1.0] * 4


def test_a_session_of_several_outputs_counts_once() -> None:
    """Each has the metric of the last one, in extra_fields; where each has its own, each counts."""
    data: dict[str, list[Any]] = {"uid": ["a", "b", "a", "b"], "session_id": [0, 0, 1, 1]}
    more = {"uid": [*data["uid"], "a", "a"], "session_id": [0, 0, 1, 1, 0, 0]}
    ious = [0.9, 0.2, 0.5, 0.4, 0.9, 0.9]
    extra = [{"reward_extra_info": {"iou": iou}} for iou in ious]
    few = phi_of(data | {"extra_fields": extra[:4]})
    assert phi_of(more | {"extra_fields": extra}) == [*few, few[0], few[0]]
    assert phi_of(more | {"iou": ious}) == phi_of({"uid": more["uid"], "iou": ious}) != [*few, few[0], few[0]]


def test_a_vocabulary_split_over_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="tensor_model_parallel_size=1"):
        verl._linear_cross_entropy(x, torch.zeros(5, 3), torch.zeros(2, dtype=torch.int64), dist_process_group="tp")
