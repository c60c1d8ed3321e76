"""ms-swift's and OpenRLHF's step on two ranks with DDP, with and without the drop-in: torchrun two_ranks_worker.py.

Prints {"ms_swift": …, "phi": …, "openrlhf": …}: the worst relative difference of losses, metrics and gradients, of all
ranks. What crosses ranks is the hosts' own: rewards, lengths and metrics by accelerate, token counts by all_reduce.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather, gather_object
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tests
from integrations.hosts.models import plain_model
from integrations.hosts.ms_swift import make_trainer, trainer_class
from integrations.hosts.openrlhf import imported
from ops.peers.source import PEERS, functions

from univg_fast.integrations import ms_swift, openrlhf

PROMPT, ACTIONS, EACH = 5, 6, 6  # sequences of a rank: three groups of four, of which the second lies on both
REWARDS = torch.tensor([[0.9, 0.2, 0.4, 0.0, 0.1, 0.3, 0.8, 0.7, 0.6, 0.5, 1.0, 0.2], [1.0, 0.0] * 6]).T


def make_batch(rank: int, count: int = EACH) -> tuple[Tensor, Tensor, Tensor]:
    """ids [B, L], attention mask [B, L], completion mask [B, ACTIONS]; rank 1 has fewer tokens."""
    generator = torch.Generator().manual_seed(rank)
    ids = torch.randint(6, 100, (count, PROMPT + ACTIONS), generator=generator)
    lengths = torch.arange(count) % (ACTIONS - 2 * rank) + 1
    mask = torch.arange(ACTIONS) < lengths[:, None]
    return ids, torch.cat([torch.ones(count, PROMPT, dtype=torch.bool), mask], 1).long(), mask


def distributed() -> Any:
    return DistributedDataParallel(plain_model(), find_unused_parameters=True)  # no images: no tower


def gradients(model: Any) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def worst(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Over all ranks; numbers within 1e-6 of each other are alike."""
    assert len(ours) == len(theirs) > 0
    pairs = [(a.double(), b.double()) for a, b in zip(ours, theirs, strict=True)]
    found = max(((a - b).norm() / b.norm().clamp(min=0.1)).item() for a, b in pairs)
    return max(gather_object([found]))


def swift_step(
    accelerator: Accelerator, owner: type, ours: bool, phi: str | None = None
) -> tuple[list[Tensor], Tensor]:
    """(loss, metrics and gradients; all advantages) as its methods have them, from rewards to metrics."""
    model, rank = distributed(), accelerator.process_index
    trainer = make_trainer(model.module, owner=owner, loss_type="dapo", epsilon_high=0.28)
    trainer.accelerator = accelerator
    ids, attention, mask = make_batch(rank)
    inputs = {"input_ids": ids, "attention_mask": attention}
    lengths = trainer._gather_and_flatten([mask.sum(1).tolist()], torch.float32, ids.device, 1)
    old = -4.6 + 0.1 * torch.sin(torch.arange(mask.numel())).view(mask.shape)
    batch = SimpleNamespace(
        completion_mask=mask,
        truncated_mask=torch.zeros(EACH, dtype=torch.bool),
        seq_lengths=attention.sum(1),
        logits_to_keep=ACTIONS,
        old_per_token_logps=old,
        ref_per_token_logps=old + 0.2,
        rollout_per_token_logps=None,
        num_items_in_batch=lengths.sum(),
        teacher_per_token_logps=None,
    )
    with ms_swift.patch(trainer, phi=phi) if ours else contextlib.nullcontext():
        every = trainer._compute_advantages([], gather(REWARDS[rank * EACH : (rank + 1) * EACH]), [])
        split = functions("swift/rlhf_trainers/utils.py", "get_even_process_data")["get_even_process_data"]
        batch.advantages = split(trainer, every)[:, None].expand(mask.shape)
        loss = trainer.compute_loss(model, {"model_inputs": inputs, "grpo_batch": batch})
        loss.backward()
    metrics = [
        torch.tensor([float(x) for x in trainer._metrics["train"][k]]) for k in sorted(trainer._metrics["train"])
    ]
    return [loss.detach(), *metrics, *gradients(model)], every


def rlhf_step(host: Any, rank: int, ours: bool) -> list[Tensor]:
    """Two micro-batches of an optimizer step, normalised by the tokens of all ranks."""
    wanted = ("_get_dp_group", "_optimizer_step_loss_norm", "iter_grad_accum_global_norm")
    own = functions("openrlhf/utils/loss_utils.py", *wanted, dist=torch.distributed)
    model = distributed()
    actor = host.actor.Actor(model, temperature=0.7).train()
    actor.packing_samples, actor.is_vlm = False, True
    batches = [make_batch(rank, 2 + step) for step in range(2)]
    windows = own["iter_grad_accum_global_norm"](batches, SimpleNamespace(), 2, lambda batch: batch[2])
    losses, policy_loss = [], host.loss.PolicyLoss()
    with openrlhf.patch(actor) if ours else contextlib.nullcontext():
        for (ids, attention, mask), info in windows:
            logp, out = actor(ids, mask.long(), attention, return_output=True, return_entropy=True)
            old = logp.detach() + 0.3 * torch.sin(torch.arange(mask.numel())).view(mask.shape)
            advantages = torch.linspace(-1, 1, len(ids))[:, None].expand(mask.shape)
            loss = policy_loss(logp, old, advantages, action_mask=mask, **info)[0]
            loss = loss - 0.01 * host.loss.aggregate_loss(out.entropy[:, -ACTIONS:], mask, **info)
            (loss / 2).backward()  # as DeepSpeed does for two micro-batches
            losses.append(loss.detach())
    return [*losses, *gradients(model)]


def phi_error(every: Tensor, plain: Tensor) -> float:
    """The weight is that of all four completions of a prompt, wherever they lie."""
    weight = (1 - REWARDS[:, 0].double().view(3, 4).mean(1)).exp().repeat_interleave(4)
    return worst([every], [plain.double() * weight])


def main() -> None:
    torch.compiler.set_stance("force_eager")  # OpenRLHF compiles its entropy
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    found, rank = {}, accelerator.process_index
    with TemporaryDirectory() as folder:
        name = "ms_swift-4.6.0.dist-info"
        (Path(folder) / name).symlink_to(PEERS / name)
        sys.path.insert(0, folder)
        owner = trainer_class(gather=gather, gather_object=gather_object)
        theirs, plain = swift_step(accelerator, owner, False)
        found["ms_swift"] = worst(swift_step(accelerator, owner, True)[0], theirs)
        found["phi"] = phi_error(swift_step(accelerator, owner, True, "iou")[1], plain)
    with TemporaryDirectory() as folder, imported(PEERS, Path(folder)) as host:
        found["openrlhf"] = worst(rlhf_step(host, rank, True), rlhf_step(host, rank, False))
    if rank == 0:
        print(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
