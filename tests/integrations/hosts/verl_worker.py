"""verl's own TrainingWorker and FSDP2 engine on a CPU, and its batches; of use after `verl_on_cpu.prepare()`.

The worker, engine, loss, model code and batches are verl's, from its wheel; verl_on_cpu.py says what is not.
"""

from __future__ import annotations

from typing import Any

import torch


def make_worker(folder: str, micro_batch: int = 2, **optimizer: Any) -> Any:
    """optimizer: more keys of verl's FSDPOptimizerConfig."""
    from verl.trainer.config import CheckpointConfig
    from verl.workers import config as c
    from verl.workers.engine_workers import TrainingWorker

    model = c.HFModelConfig(
        path=folder,
        load_tokenizer=False,
        enable_gradient_checkpointing=False,
        use_remove_padding=False,
        use_fused_kernels=True,
        fused_kernel_options={"impl_backend": "torch"},
        override_config={"attn_implementation": "eager"},
    )
    engine = c.FSDPEngineConfig(
        strategy="fsdp2",
        mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
        use_torch_compile=False,
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=micro_batch,
        infer_micro_batch_size_per_gpu=micro_batch,
        max_token_len_per_gpu=1000,
        infer_max_token_len_per_gpu=1000,
    )
    chosen = {"lr": 1e-2, "optimizer": "SGD", "total_training_steps": 10, "clip_grad": 1e9} | optimizer
    worker = TrainingWorker(
        c.TrainingWorkerConfig(
            model_type="language_model",
            model_config=model,
            engine_config=engine,
            optimizer_config=c.FSDPOptimizerConfig(**chosen),
            checkpoint_config=CheckpointConfig(),
        )
    )
    worker.reset()
    return worker


def as_verl(
    ids: torch.Tensor,
    mask: torch.Tensor,
    prompt: int,
    images: list[dict[str, torch.Tensor]],
    uids: list[str],
    columns: dict[str, torch.Tensor],
    mini_batch: int,
    pad_token_id: int = 0,
) -> Any:
    """What verl's trainer hands its actor for an update.

    ids, mask [B, L]: prompts (to `prompt`, padded left), then responses; images: of each row; columns [B, responses].
    """
    from tensordict import TensorDict
    from tensordict.tensorclass import NonTensorData, NonTensorStack
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.padding import left_right_2_no_padding

    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    batch = columns | {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": positions[:, None].expand(len(ids), 4, -1).clone(),
        "prompts": ids[:, :prompt],
        "responses": ids[:, prompt:],
        "response_mask": mask[:, prompt:],
        "multi_modal_inputs": NonTensorStack(*[NonTensorData(x) for x in images]),
        "uid": NonTensorStack(*[NonTensorData(uid) for uid in uids]),
    }
    data = left_right_2_no_padding(TensorDict(batch, batch_size=len(ids)))
    tu.assign_non_tensor(data, global_batch_size=mini_batch, mini_batch_size=mini_batch, epochs=1, temperature=0.9)
    tu.assign_non_tensor(data, calculate_entropy=True, compute_loss=True, pad_token_id=pad_token_id)
    return data


def log_probs(worker: Any, data: Any) -> torch.Tensor:
    """[B, responses], by verl's own pass without gradients."""
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.padding import no_padding_2_padding

    data = data.clone()
    tu.assign_non_tensor(data, compute_loss=False)
    found = worker.infer_batch(data.clone())
    return no_padding_2_padding(found["log_probs"], data)


def actor_config(loss_mode: str, **keys: Any) -> Any:
    """keys: more of verl's ActorConfig."""
    from verl.workers import config as c

    settings = {"entropy_coeff": 0.01, "use_kl_loss": True, "kl_loss_coef": 0.1} | keys
    loss = c.PolicyLossConfig(loss_mode=loss_mode)
    return c.FSDPActorConfig(rollout_n=2, ppo_micro_batch_size_per_gpu=2, policy_loss=loss, **settings)


def patched_names() -> list[Any]:
    """What the drop-in replaces, as it is just now."""
    from verl.trainer.ppo import core_algos
    from verl.utils.experimental.torch_functional import FusedLinearForPPO
    from verl.utils.kernel import linear_cross_entropy
    from verl.workers import engine_workers
    from verl.workers.utils import losses

    worker = engine_workers.TrainingWorker
    found = [core_algos.POLICY_LOSS_REGISTRY, FusedLinearForPPO.forward, linear_cross_entropy.linear_cross_entropy]
    return [*found, losses.ppo_loss, engine_workers.ppo_loss, worker.train_mini_batch]
