"""Stage 1's loss of a row, from hidden states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ops.linear_cases import Called
from tiny import random_group, tiny_model

from univg_fast.loss import sft_head
from univg_fast.packing import build_row


def test_it_is_the_share_of_the_step_and_looks_for_no_rows_to_skip() -> None:
    groups = [random_group(np.random.default_rng(0), [(4, 4)], [5, 9])]
    row, g = build_row(groups, tiny_model().family), torch.Generator().manual_seed(1)
    hidden = torch.randn(len(row.target_ids), 8, generator=g, requires_grad=True)
    weight = torch.randn(int(row.target_ids.max()) + 1, 8, generator=g, requires_grad=True)
    with Called() as called:
        loss, logp = sft_head(row, 23.0)(hidden, weight)
    truth = F.cross_entropy(F.linear(hidden.double(), weight.double()), row.target_ids, reduction="none")
    torch.testing.assert_close(logp, -truth.float())
    assert loss.item() == pytest.approx(truth.sum().item() / 23, rel=1e-5)
    grads = (torch.autograd.grad(x, (hidden, weight)) for x in (loss, truth.sum() / 23))
    torch.testing.assert_close(*grads)
    assert not {"nonzero", "index", "index_put_"} & set(called.names)
