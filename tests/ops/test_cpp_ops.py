"""The C++ policy ops without a door in front: names, guards, parts."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import univg_kernels as uk
from univg_kernels._program import SCALARS, Program, row_program
from univg_kernels._rows import PolicyRows
from univg_kernels._softmax import SoftmaxSpec
from univg_kernels.grpo_loss.cpp_impl import grpo_head, grpo_head_
from univg_kernels.policy_loss.cpp_impl import RowInputs, policy_rows, row_inputs
from univg_kernels.policy_loss.table import KLS, LOSSES

ops = torch.ops.univg_kernels


def program_arguments(
    n: int, config: uk.GrpoConfig | None = None, dtype: torch.dtype = torch.float32, **given: Any
) -> tuple[RowInputs, Program]:
    rows = PolicyRows(torch.tensor([0, n]), advantages=torch.ones(1), **given)
    return row_inputs(rows, config or uk.GrpoConfig(), n, dtype), row_program(rows, config or uk.GrpoConfig())


def test_the_names_are_those_of_the_table() -> None:
    """An enumerator of row_program.h is its place in the list."""
    inputs, program = program_arguments(2)
    lp, cu = torch.zeros(2), torch.tensor([0, 2])
    for field, names in {"loss_type": list(LOSSES), "kl": ["none", *KLS]}.items():
        with pytest.raises(RuntimeError, match=re.escape(f"{field}: expected one of {', '.join(names)}, got x")):
            policy_rows(lp, None, cu, inputs, program._replace(**{field: "x"}))
    with pytest.raises(RuntimeError, match=f"scalars: expected {len(SCALARS)} numbers, got 0"):
        policy_rows(lp, None, cu, inputs, program._replace(scalars=[]))


@pytest.mark.parametrize("offsets", [[0, 3], [1, 2], [0, 2, 1, 2], [0]])
def test_offsets(offsets: list[int]) -> None:
    with pytest.raises(RuntimeError, match="cu_seqlens: expected offsets that begin with 0, never fall and end at 2"):
        policy_rows(torch.zeros(2), None, torch.tensor(offsets), *program_arguments(2))


@pytest.mark.parametrize("offsets", [[0, 3], [1, 2], [0, 2, 1, 2], [0]])
def test_offsets_of_rows_that_are_alone(offsets: list[int]) -> None:
    """What spreads the responses over the rows looks, too: no row without a response, none of two."""
    rows = PolicyRows(torch.tensor(offsets), advantages=torch.ones(max(len(offsets) - 1, 1)))
    with pytest.raises(RuntimeError, match="row_terms: cu_seqlens: expected offsets that begin with 0, never fall and"):
        row_inputs(rows, uk.GrpoConfig(), 2, torch.float32)


@pytest.mark.parametrize("config", [{}, dict(loss_type="gmpo"), dict(importance_sampling_level="sequence")], ids=str)
def test_threads_change_nothing(config: dict[str, Any]) -> None:
    """Blocks of rows are added up in their order; 5000 rows are several blocks."""
    logp = -torch.rand(5000, generator=torch.Generator().manual_seed(4))
    cu = torch.arange(0, 5001, 50)
    rows = dict(token_advantages=logp + 0.5, old_logp=logp.roll(1), ref_logp=logp.roll(2), mask=logp > -0.9)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            leaf = logp.clone().requires_grad_()
            out = uk.policy_loss(leaf, cu, config=uk.GrpoConfig(**config), **rows)
            results.append((out.loss.detach(), out.metrics, *torch.autograd.grad(out.loss, leaf)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_a_program_that_does_not_fit() -> None:
    inputs, program = program_arguments(2)
    z, ids = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    for wrong in ({"level": "sequence"}, {"loss_type": "gmpo"}, {"off_policy_mask": True}):
        with pytest.raises(RuntimeError, match="grpo_head: expected a program whose rows do not depend on each other"):
            ops.grpo_head_(z, ids, *inputs, *program._replace(**wrong), 1.0, 0.0)
    with pytest.raises(RuntimeError, match="sampling_logp: expected a tensor for this importance, got None"):
        policy_rows(torch.zeros(2), None, torch.tensor([0, 2]), inputs, program._replace(importance="token_mask"))
    with pytest.raises(RuntimeError, match="given_importance: expected a tensor for this importance, got None"):
        policy_rows(torch.zeros(2), None, torch.tensor([0, 2]), inputs, program._replace(importance="token_given"))
    with pytest.raises(RuntimeError, match="old_logp: expected 2 contiguous elements, got 3"):
        policy_rows(torch.zeros(2), None, torch.tensor([0, 2]), inputs._replace(old_logp=torch.zeros(3)), program)


def test_a_part_of_the_rows() -> None:
    """A chunk of the rows is scored as it is among all of them."""
    config = uk.GrpoConfig(importance_sampling_mode="token_mask", entropy_coef=0.1, entropy_aggregation="loss")
    inputs, program = program_arguments(
        6, config, entropy_threshold=torch.tensor(1.0), sampling_logp=torch.linspace(-3, -1, 6)
    )
    z, ids = torch.randn(6, 5, generator=torch.Generator().manual_seed(2)), torch.arange(6) % 5
    softmax = SoftmaxSpec(1.0, 0.0, None)
    whole = grpo_head(z, ids, inputs, program, softmax, True)
    for start, stop in ((0, 2), (2, 6)):
        part = z[start:stop].clone()
        _, _, logp, active = grpo_head_(part, ids[start:stop], inputs.part(slice(start, stop)), program, softmax)
        for got, want in zip((logp, active, part), whole[2:], strict=True):
            assert torch.equal(got, want[start:stop])
