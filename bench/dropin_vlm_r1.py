"""VLM-R1's loss on a small Qwen2-VL: 2 prompts of 3 images, 4 completions each; forward and backward of the policy.

VLM-R1 is no package: the trainer is a minimal one with its methods and arithmetic (tests/integrations/hosts/vlm_r1.py).
"""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

import torch

from univg_fast.integrations.vlm_r1 import patch
from univg_fast.model.patches import repeat_frames

from .dropin_host import SIZES, Step, load_host
from .rollout import END, IMAGE, PAD, START, VIDEO, make_model, make_samples


def problem(size: str) -> tuple[Step, Step]:
    """(VLM-R1's step, the same with the drop-in), of completions that the second trainer has sampled."""
    shape, host = SIZES[size], load_host("vlm_r1")
    data = [
        {
            "prompt": s.prompt_ids.tolist(),
            "pixel_values": repeat_frames(torch.from_numpy(s.pixel_values), 2),
            "image_grid_thw": torch.from_numpy(s.image_grid_thw),
        }
        for s in make_samples(shape)
    ]
    trainers = []
    for _ in range(2):
        with TemporaryDirectory() as folder:
            args = host.GRPOConfig(
                output_dir=folder,
                use_cpu=True,
                report_to=[],
                per_device_train_batch_size=shape.prompts * shape.group,
                num_generations=shape.group,
                max_completion_length=shape.tokens,
                num_iterations=2,  # so that completions are used again
                pad_token_id=PAD,
                eos_token_id=5,
                suppress_tokens=(IMAGE, START, END, VIDEO, PAD),
                beta=0.04,
            )
            model = make_model(shape, torch.device("cpu"))[1].train()
            trainers.append(host.VLMGRPOTrainer(model, [_reward], args, data))
    patch(trainers[1])  # for good
    torch.manual_seed(0)
    inputs = trainers[1]._generate_and_score_completions(
        [x for x in data for _ in range(shape.group)], trainers[1].model
    )

    old = inputs["old_per_token_logps"]
    inputs["old_per_token_logps"] = old + 0.3 * torch.rand(old.shape)  # ratios beside 1
    inputs["ref_per_token_logps"] = old - 1  # and a KL, so that the loss is not a difference of like numbers

    def step(trainer: Any) -> torch.Tensor:
        trainer._buffered_inputs, trainer.state.global_step = [inputs], 1
        loss: torch.Tensor = trainer.compute_loss(trainer.model, None)
        loss.backward()
        return loss.detach()

    host_step, ours = (Step(lambda t=t: step(t), tuple(t.model.parameters())) for t in trainers)
    return host_step, ours


def _reward(completions: list[list[int]], **_: Any) -> list[float]:
    return [sum(ids) % 97 / 97 for ids in completions]
