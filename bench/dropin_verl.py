"""verl 0.9's head and policy loss, with and without the drop-in: hidden states -> loss -> gradients.

All of it is verl's: `FusedLinearForPPO` (impl_backend="torch", chunks of 512 rows) scores every token, with prompts,
as its Qwen-VL forwards do; the responses' log-probabilities and entropies go to `vanilla`, with the entropy bonus. The
transformer below the head, which a drop-in leaves alone, is not in it. Needs an installed verl (with Ray).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .dropin_host import Step

# (sequences, tokens of a prompt, tokens of a response, hidden size, vocabulary)
SIZES = {"default": (4, 384, 64, 256, 32_000), "tiny": (2, 6, 4, 32, 100)}


def problem(size: str) -> tuple[Step, Step]:
    """(verl's step, the same with the drop-in): each makes new gradients and gives the loss."""
    from verl.trainer.ppo.core_algos import agg_loss, get_policy_loss_fn
    from verl.utils.experimental.torch_functional import FusedLinearForPPO
    from verl.workers.config import FSDPActorConfig

    from univg_fast.integrations import verl

    batch, prompt, response, width, vocab = SIZES[size]
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(batch, prompt + response, width, generator=g).requires_grad_()
    weight = (0.2 * torch.randn(vocab, width, generator=g)).requires_grad_()
    labels = torch.randint(vocab, (batch, prompt + response), generator=g)
    mask = torch.ones(batch, response, dtype=torch.bool)
    advantages = torch.randn(batch, 1, generator=g).expand(batch, response)
    noise = 0.2 * torch.randn(batch, response, generator=g)
    with torch.no_grad():
        old = FusedLinearForPPO().forward(hidden, weight, labels, 1.0)[0][:, -response - 1 : -1] + noise
    config: Any = FSDPActorConfig(rollout_n=1, ppo_micro_batch_size_per_gpu=1)

    def step(drop_in: Callable[[], AbstractContextManager[Any]]) -> Tensor:
        with drop_in():
            scored = FusedLinearForPPO().forward(hidden, weight, labels, 1.0)
            logp, entropy = (x[:, -response - 1 : -1] for x in scored)
            given = {"old_log_prob": old, "log_prob": logp, "advantages": advantages, "response_mask": mask}
            loss, _ = get_policy_loss_fn("vanilla")(**given, loss_agg_mode="token-mean", config=config)
            loss = loss - 0.01 * agg_loss(loss_mat=entropy, loss_mask=mask, loss_agg_mode="token-mean")
            loss.backward()
        return loss.detach()

    host, ours = (Step(lambda way=way: step(way), (hidden, weight)) for way in (nullcontext, verl.patch))
    return host, ours
