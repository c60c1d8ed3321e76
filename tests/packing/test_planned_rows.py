"""However groups are laid into rows, split or not, the losses and gradients of a step are the same."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import random_group, tiny_model
from univg_kernels import GrpoConfig

from univg_fast.data.windows import Planning, share_out
from univg_fast.loss import grpo_head, sft_head
from univg_fast.loss.grpo import RowTargets
from univg_fast.model import PackedModel
from univg_fast.packing import Row
from univg_fast.packing.pinning import pinned
from univg_fast.packing.plan import Part, plan_rows
from univg_fast.packing.report import figures, tally
from univg_fast.structs import Group
from univg_fast.train.draws import encode
from univg_fast.train.rows import Builder, OverBudget, size_of

GRIDS = [[(4, 6), (8, 8)], [(4, 4)], [], [(6, 6), (4, 4), (2, 8)], [(8, 4)]]
CONFIG = GrpoConfig(loss_type="grpo", epsilon_low=0.2, epsilon_high=0.2, beta=0.0, temperature=1.0)


def planned(model: PackedModel, groups: list[Group], budget: int) -> list[tuple[Row, list[Part]]]:
    plan = plan_rows([size_of(group) for group in groups], budget)
    with ThreadPoolExecutor(2) as pool:
        return list(zip(Builder.of(model).rows(groups, plan, pool), plan, strict=True))


def gradients(model: PackedModel) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


def grpo_step(model: PackedModel, groups: list[Group], budget: int) -> tuple[float, torch.Tensor]:
    """The trainer's sum over rows: advantages and phi belong to the group, whatever part of it a row holds."""
    rng = np.random.default_rng(5)
    of_group = [torch.from_numpy(rng.standard_normal(len(group.responses)).astype(np.float32)) for group in groups]
    responses, loss = sum(len(group.responses) for group in groups), 0.0
    for row, parts in planned(model, groups, budget):
        advantages = torch.cat([of_group[part.group][list(part.responses)] for part in parts])
        phi = torch.tensor([1.0 + part.group for part in parts for _ in part.responses])
        output = model(row, grpo_head(row, RowTargets(advantages, phi), responses, CONFIG))
        output.loss.backward()
        loss += output.loss.item()
    return loss, gradients(model)


def test_a_split_group_gives_the_same_step() -> None:
    model, rng = tiny_model(), np.random.default_rng(0)
    groups = [random_group(rng, grids, [5, 9, 3, 7, 1, 12][: 2 + i]) for i, grids in enumerate(GRIDS)]
    whole, split = planned(model, groups, 10_000), planned(model, groups, 36)
    assert len(whole) == 1 and sum(len(parts) for _, parts in split) > len(groups) + 3, "not split"
    loss, grad = grpo_step(model, groups, 10_000)
    other_loss, other_grad = grpo_step(model, groups, 36)
    assert other_loss == pytest.approx(loss, rel=1e-5)
    assert (other_grad - grad).norm() <= 1e-5 * grad.norm()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_window_gives_the_same_sum_over_its_samples(ranks: int) -> None:
    """On or off, and dealt to ranks: each sample's tokens count once, with the same weight."""
    model, rng = tiny_model(), np.random.default_rng(1)
    groups = [random_group(rng, GRIDS[i % 5], [3 + 2 * i]) for i in range(8)]
    sizes, builder = [size_of(group) for group in groups], Builder.of(model)
    tokens = sum(size.responses[0] for size in sizes)
    found = []
    for planning, steps in ((Planning(90, 8), 2), (Planning(10_000, 0), 1)):
        loss = 0.0
        shares = [rows for step in share_out(sizes, steps, ranks, planning, [0, 0]) for rows in step]
        for members in (row for rows in shares for row in rows):
            row = builder.row([groups[i] for i in members])
            out, _ = model(row, sft_head(row, tokens))
            out.backward()
            loss += out.item()
        found.append((loss, gradients(model)))
    (loss, grad), (other_loss, other_grad) = found
    assert other_loss == pytest.approx(loss, rel=1e-5)
    assert (other_grad - grad).norm() <= 1e-5 * grad.norm()


def test_the_report_by_hand() -> None:
    rng = np.random.default_rng(2)
    groups = [random_group(rng, [(4, 4)], [10] * 4), random_group(rng, [(4, 6)], [10] * 4)]
    sizes = [replace(size_of(group), prompt=20 * (i + 1)) for i, group in enumerate(groups)]  # 20 + 40, 40 + 40
    rows = [[part.size for part in parts] for parts in plan_rows(sizes, 70)]  # 60 | 40 + 30 | 40 + 10
    sums = tally(sizes, rows, 70, spare_tokens=18)
    assert sums["groups"] == 2 and sums["group_tokens"] == 60 + 80  # the second prompt once, though in two rows
    assert sums["packed_tokens"] == 60 + 70 + 50 and sums["room"] == 210 and sums["rows"] == 3
    assert sums["separate_tokens"] == 4 * 30 + 4 * 50 and sums["padded_tokens"] == 8 * 50
    found = figures({key: 2 * value for key, value in sums.items()}, 1.5 * sums["cost"], ranks=2)
    assert found["pack/fill"] == pytest.approx(180 / 210) and found["pack/shared"] == pytest.approx(1 - 180 / 320)
    assert found["pack/saved"] == pytest.approx(1 - 180 / 400) and found["pack/padding"] == pytest.approx(18 / 198)
    assert found["pack/imbalance"] == pytest.approx(0.5) and found["pack/over_budget"] == 0
    nothing = figures(tally([], [], 70), 0.0, ranks=2)
    assert all(value == 0 for value in nothing.values())


def test_what_no_split_helps_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group = random_group(np.random.default_rng(0), [(4, 4)], [30, 5])
    told = OverBudget(budget=25)
    for _ in range(2):
        for part in (part for parts in plan_rows([size_of(group)], 25) for part in parts):
            told.tell(group.sample.record, part.size.tokens, copies=2)
    said = capsys.readouterr().err
    tokens = len(group.sample.prompt_ids) + 30
    assert said.count("\n") == 1
    assert f"tests:1 (u): a row of its own of {tokens} tokens, its prompt computed 2 times" in said
    assert "pack.budget_tokens=25." in said and f"pack.budget_tokens={tokens} would hold it" in said
    for number in range(100):
        told.tell(replace(group.sample.record, source=f"tests:{2 + number}"), 26)
    said = capsys.readouterr().err
    assert said.count("\n") == OverBudget.TOLD - 1 and "tests:20 (u)" in said
    assert said.endswith("further ones are in over_budget.jsonl only\n")
    for _ in range(2):  # each record's id, none of them dropped, and none twice
        told.note(tmp_path / "over.jsonl", stage="sft", step=3)
    rows = [json.loads(line) for line in (tmp_path / "over.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == [f"tests:{1 + number}" for number in range(101)]
    assert rows[0] | {"rank": 0, "stage": "sft", "step": 3, "budget": 25, "tokens": tokens, "copies": 2} == rows[0]


def tensors(item: Any) -> list[torch.Tensor]:
    if isinstance(item, torch.Tensor):
        return [item]
    if is_dataclass(item):
        return [x for field in fields(item) for x in tensors(getattr(item, field.name))]
    parts = item.values() if isinstance(item, dict) else item if isinstance(item, tuple) else ()
    return [x for part in parts for x in tensors(part)]


def test_the_tower_sees_a_step_s_images_in_passes_of_a_budget() -> None:
    """Each prompt's features are what they are when all are seen at once; a prompt with more has a pass of its own."""
    model, rng = tiny_model(), np.random.default_rng(0)
    samples = [random_group(rng, grids, [1]).sample for grids in ([(4, 4)], [], [(8, 8), (4, 4)], [(4, 6)], [(4, 4)])]
    builder, tokens = Builder.of(model), [sum(h * w // 4 for _, h, w in s.image_grid_thw.tolist()) for s in samples]
    assert tokens == [4, 0, 20, 6, 4]
    (whole,), parts = builder.images(samples, 34), builder.images(samples, 10)
    assert [look.samples for look in parts] == [2, 1, 2] and whole.samples == 5
    assert [len(look.pixels) for look in parts] == [16, 80, 40]
    found, want = encode(model, samples, parts), encode(model, samples, (whole,))
    assert [len(f.pooled) for f in found] == [len(f.pooled) for f in want] == tokens
    for ours, theirs in zip(found, want, strict=True):
        torch.testing.assert_close(ours.pooled, theirs.pooled, rtol=1e-5, atol=1e-5)
    assert builder.images([], 10) == () and encode(model, [], ()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory is CUDA's")
def test_a_pinned_row_is_the_same_row() -> None:
    model = tiny_model()
    row = Builder.of(model).row([random_group(np.random.default_rng(0), [(8, 8), (4, 4)], [3, 5])])
    copied = pinned(row, torch.device("cuda"))
    assert len(tensors(row)) == len(tensors(copied)) > 8
    assert all(x.is_pinned() and torch.equal(x, y) for x, y in zip(tensors(copied), tensors(row), strict=True))
