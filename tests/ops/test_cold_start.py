"""torch.compile as users meet it: in a process where no op was called before."""

from __future__ import annotations

import subprocess
import sys
import textwrap

CALLS = {
    "grpo_loss": "uk.grpo_loss(x, ids, cu, advantages=a, inplace=False, backend='cpp').loss",
    "linear_grpo_loss": "uk.linear_grpo_loss(h, x, ids, cu, advantages=a).loss",
    "policy_loss": "uk.policy_loss(x[:, 0], cu, advantages=a).loss",
    "linear_ce": "uk.linear_ce(h, x, ids, row_weight=torch.ones(6))[0]",
    "linear_logprob": "uk.linear_logprob(h, x, ids)[0].sum()",
    "selective_logprob": "uk.selective_logprob(x, ids)[0].sum()",
    "box_iou": "uk.box_iou(x[:, :4] + wide, x[:, 1:5] + wide).sum()",
    "group_advantage": "x.sum() + uk.group_advantage(a, torch.tensor([0, 2])).advantages.sum()",
    "difficulty_weight": "x.sum() + uk.difficulty_weight(a.abs() / 2).sum()",
}


def test_fullgraph_in_a_fresh_process() -> None:
    """Each op is called through its compiled form first: nothing has called it before."""
    code = f"""
        import torch, univg_kernels as uk
        x, h = torch.rand(6, 8, requires_grad=True), torch.rand(6, 8)
        wide = torch.tensor([0.0, 0.0, 2.0, 2.0])
        ids, cu, a = torch.arange(6), torch.tensor([0, 4, 6]), torch.tensor([1.0, -0.5])
        for op, call in {CALLS!r}.items():
            loss = eval("lambda x: " + call)
            torch._dynamo.reset()
            compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
            got, = torch.autograd.grad(compiled(x), x)
            want, = torch.autograd.grad(loss(x), x)
            torch.testing.assert_close(got, want, msg=op)
            assert got.abs().sum() > 0, op
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
