"""Updates of verl's actor, with and without the drop-in; a process of its own, for verl patches transformers.

    python verl_cases.py OUT.pt CASES.json

OUT.pt has for each case what two updates of the actor gave, or the error that they raised. Of a case: "patch"
(arguments of the drop-in, or null), "loss_mode" and "actor" (more keys of verl's ActorConfig), "columns" (more of the
batch), "scale" (factors of the advantages), "padding" (rows without a token). With "loss": one call of the policy loss
instead, with "distillation" as verl's distillation calls it.
"""

from __future__ import annotations

import functools
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from verl_on_cpu import prepare
from verl_worker import actor_config, as_verl, log_probs, make_worker, patched_names

PROMPT, RESPONSE, ROWS = 12, 7, 8
IMAGE = 16  # patches, 4 tokens


def save_model(folder: str) -> None:
    """Tied, as Qwen2-VL-2B: an untied head is sharded by itself in verl 0.9, and its fused kernels cannot read that."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 100,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
    }
    vision = {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "patch_size": 4}
    ids = {"image_token_id": 2, "video_token_id": 3, "vision_start_token_id": 4, "vision_end_token_id": 5}
    torch.manual_seed(0)
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    model = Qwen2VLForConditionalGeneration(config)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)


def make_batch(old: torch.Tensor | None = None) -> Any:
    """Two completions of each of four prompts, which no micro-batch has together."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(6, 100, (ROWS, PROMPT + RESPONSE), generator=g)
    ids[:, 5:9] = 2  # an image
    mask = torch.ones_like(ids)
    for row, (left, right) in enumerate([(3, 0), (0, 2), (1, 0), (0, 4), (2, 1), (0, 0), (1, 3), (0, 1)]):
        mask[row, :left] = 0
        mask[row, PROMPT + RESPONSE - right :] = 0
    images = [
        {
            "pixel_values": torch.randn(IMAGE, 3 * 2 * 4 * 4, generator=g),
            "image_grid_thw": torch.tensor([[1, 4, 4]]),
        }
        for _ in range(ROWS)
    ]
    around = torch.randn(2, ROWS, RESPONSE, generator=g)
    old = torch.zeros(ROWS, RESPONSE) if old is None else old + 0.5 * around[0]
    columns = {
        "old_log_probs": old,
        "ref_log_prob": old + 0.3 * around[1],
        "rollout_is_weights": 0.5 + torch.rand(ROWS, RESPONSE, generator=g),
        "advantages": torch.randn(ROWS, 1, generator=g).expand(ROWS, RESPONSE).clone(),
    }
    return as_verl(ids, mask, PROMPT, images, [f"prompt {i % 4}" for i in range(ROWS)], columns, mini_batch=4)


def update(folder: str, old: torch.Tensor, case: dict[str, Any]) -> dict[str, Any]:
    """Two optimizer steps: metrics of each, and each step's gradients by parameter."""
    from tensordict.tensorclass import NonTensorData, NonTensorStack
    from verl.workers import engine_workers

    worker = make_worker(folder)
    worker.set_loss_fn(
        functools.partial(engine_workers.ppo_loss, config=actor_config(case["loss_mode"], **case.get("actor", {})))
    )
    gradients: list[dict[str, torch.Tensor]] = []
    step = worker.engine.optimizer_step

    def watched() -> Any:
        named = worker.engine.module.named_parameters()
        gradients.append({name: p.grad.full_tensor().clone() for name, p in named if p.grad is not None})
        return step()

    worker.engine.optimizer_step = watched
    data = make_batch(old)
    real = torch.tensor([row not in case.get("padding", []) for row in range(ROWS)])[:, None]
    for name in ("response_mask", "loss_mask"):
        data[name] = data[name] * real
    data["advantages"] *= torch.tensor(case.get("scale", [1.0] * ROWS))[:, None]
    for name, values in case.get("columns", {}).items():
        data[name] = NonTensorStack(*[NonTensorData(value) for value in values])
    metrics = worker.train_mini_batch(data)["metrics"]
    plain = {name: [_number(value) for value in _flat(values)] for name, values in metrics.items()}
    return {"metrics": plain, "gradients": gradients}


def policy_loss(case: dict[str, Any]) -> dict[str, Any]:
    """The loss that verl has under the name just now, on given fp64 tensors: value, metrics, gradient by log_prob."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.workers.config import DistillationLossConfig

    actor = config = actor_config(case["loss_mode"], **case.get("actor", {}))
    if case.get("distillation"):
        config = DistillationLossConfig(loss_mode="k1", clip_ratio_low=0.3, clip_ratio_high=0.25)
    config.global_batch_info.update(case["info"])
    given = {name: torch.tensor(values, dtype=torch.float64) for name, values in case["loss"].items()}
    given["response_mask"] = given["response_mask"].bool()
    given["log_prob"].requires_grad_()
    function = get_policy_loss_fn(case["loss_mode"])
    loss, metrics = function(**given, loss_agg_mode=actor.loss_agg_mode, config=config)
    (gradient,) = torch.autograd.grad(loss, given["log_prob"])
    return {"loss": loss.detach(), "metrics": metrics, "gradient": gradient}


def _number(value: Any) -> float:
    return float(value.aggregate() if hasattr(value, "aggregate") else value)


def _flat(values: Any) -> list[Any]:
    return [x for value in values for x in _flat(value)] if isinstance(values, list) else [values]


def run(folder: str, old: torch.Tensor, case: dict[str, Any]) -> dict[str, Any]:
    from univg_fast.integrations import verl

    try:
        with nullcontext() if case["patch"] is None else verl.patch(**case["patch"]):
            return policy_loss(case) if "loss" in case else update(folder, old, case)
    except ValueError as error:
        return {"error": str(error)}


def main(out: str, cases: str) -> None:
    prepare()
    before = patched_names()
    with TemporaryDirectory() as folder:
        save_model(folder)
        old = log_probs(make_worker(folder), make_batch())
        batch = make_batch(old)
        found = {name: run(folder, old, case) for name, case in json.loads(Path(cases).read_text()).items()}
    names = ("response_mask", "old_log_probs", "rollout_is_weights", "advantages")
    restored = [a is b or a == b for a, b in zip(before, patched_names(), strict=True)]
    given = {name: batch[name] for name in names}
    torch.save({"log_probs": old, "batch": given, "found": found, "restored": restored}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
