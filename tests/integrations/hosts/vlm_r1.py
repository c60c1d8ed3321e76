"""A minimal VLM-R1 / UniVG-R1 trainer in our own words: neither is a package that could be installed.

What is theirs: the methods' names and arguments, what the inputs of the loss hold, the arithmetic, when completions are
made and when they are used again (num_iterations), UniVG-R1's difficulty weight. It stands on transformers' own Trainer
and a real Qwen2-VL; prompts come as token ids and pixels, so that no tokenizer is needed. transformers 5 wants to be
told which tokens are images (mm_token_type_ids), which 4.49, that these codebases pin, finds by itself.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import GenerationConfig, Trainer, TrainingArguments


@dataclass
class GRPOConfig(TrainingArguments):
    num_generations: int = 4
    max_completion_length: int = 6
    num_iterations: int = 1
    beta: float = 0.04
    epsilon: float = 0.2
    pad_token_id: int = 0
    eos_token_id: int = 1
    suppress_tokens: tuple[int, ...] = ()  # random weights would sample image tokens
    miou_adjust: bool = False  # UniVG-R1
    miou_adjust_math: str = "exp"


class Repeated(Sampler[int]):
    """Each index `size` times in a row, and each batch of prompts once for every iteration."""

    def __init__(self, count: int, size: int, prompts: int, iterations: int) -> None:
        self.order = [
            i
            for first in range(0, count - prompts + 1, prompts)
            for _ in range(iterations)
            for i in range(first, first + prompts)
            for _ in range(size)
        ]

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)


class VLMGRPOTrainer(Trainer):
    def __init__(self, model: Any, reward_funcs: list[Callable[..., list[float]]], args: GRPOConfig, data: Any) -> None:
        self.reward_funcs = reward_funcs
        self.num_generations, self.num_iterations = args.num_generations, args.num_iterations
        self.beta, self.epsilon = args.beta, args.epsilon
        self.generation_config = GenerationConfig(
            max_new_tokens=args.max_completion_length,
            do_sample=True,
            pad_token_id=args.pad_token_id,
            eos_token_id=args.eos_token_id,
            suppress_tokens=list(args.suppress_tokens) or None,
        )
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self._step, self._buffered_inputs = 0, [None] * args.gradient_accumulation_steps
        model.warnings_issued = {"estimate_tokens": True}
        super().__init__(model=model, args=args, data_collator=lambda features: features, train_dataset=data)
        self.ref_model = copy.deepcopy(model).eval().requires_grad_(False) if args.beta else None
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, *_: Any) -> Repeated:
        prompts = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps // self.num_generations
        return Repeated(len(self.train_dataset), self.num_generations, prompts, self.num_iterations)

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs

    def _get_per_token_logps(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, **custom_multimodal_inputs: Tensor
    ) -> Tensor:
        """[B, L - 1], of all tokens but the first."""
        if custom_multimodal_inputs.get("image_grid_thw") is not None:
            kinds = (input_ids == self.model.config.image_token_id).int()
            custom_multimodal_inputs |= {"mm_token_type_ids": kinds}
        logits = model(input_ids=input_ids, attention_mask=attention_mask, **custom_multimodal_inputs).logits[:, :-1]
        each = [
            row.log_softmax(-1).gather(1, ids[:, None])[:, 0] for row, ids in zip(logits, input_ids[:, 1:], strict=True)
        ]
        return torch.stack(each)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]], model: Any) -> dict[str, Any]:
        longest = max(len(x["prompt"]) for x in inputs)
        left = [longest - len(x["prompt"]) for x in inputs]
        prompt_ids = torch.tensor(
            [[self.args.pad_token_id] * n + list(x["prompt"]) for n, x in zip(left, inputs, strict=True)]
        )
        prompt_mask = torch.tensor([[0] * n + [1] * (longest - n) for n in left])
        images = [x for x in inputs if "pixel_values" in x]
        names = ("pixel_values", "image_grid_thw")
        given = {name: torch.cat([x[name] for x in images]) for name in names} if images else {}
        multimodal_inputs = {name: given.get(name) for name in names}  # None for texts, as there
        more = dict(given)
        if images:
            more["mm_token_type_ids"] = (prompt_ids == self.model.config.image_token_id).int()
        with torch.no_grad():
            every = self.accelerator.unwrap_model(model).generate(
                input_ids=prompt_ids,
                attention_mask=prompt_mask,
                generation_config=self.generation_config,
                **more,
            )
            completion_ids = every[:, longest:]
            ends = (completion_ids == self.args.eos_token_id).int()
            completion_mask = ((ends.cumsum(1) - ends) == 0).int()  # up to the first end, and with it
            attention_mask = torch.cat([prompt_mask, completion_mask], 1)
            old = ref = None
            if self.num_iterations > 1:
                old = self._get_per_token_logps(model, every, attention_mask, **multimodal_inputs)[:, longest - 1 :]
            if self.beta:
                ref = self._get_per_token_logps(self.ref_model, every, attention_mask, **multimodal_inputs)
                ref = ref[:, longest - 1 :]
        completions = [ids[mask.bool()].tolist() for ids, mask in zip(completion_ids, completion_mask, strict=True)]
        found = [f(completions=completions, inputs=inputs) for f in self.reward_funcs]
        rewards_per_func = torch.tensor(found, dtype=torch.float32).T
        miou = rewards_per_func[:, 0].mean()
        rewards_per_func = self.accelerator.gather(rewards_per_func)
        rewards = rewards_per_func.sum(1)
        groups = rewards.view(-1, self.num_generations)
        mean, std = (x.repeat_interleave(self.num_generations) for x in (groups.mean(1), groups.std(1)))
        advantages = (rewards - mean) / (std + 1e-4)
        first = self.accelerator.process_index * len(inputs)
        self._metrics["completion_length"].append(completion_mask.sum(1).float().mean().item())
        self._metrics["reward"].append(rewards.mean().item())
        self._metrics["reward_std"].append(groups.std(1).mean().item())
        for i, function in enumerate(self.reward_funcs):
            self._metrics[f"rewards/{function.__name__}"].append(rewards_per_func[:, i].mean().item())
        return {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "completion_ids": completion_ids,
            "completion_mask": completion_mask,
            "old_per_token_logps": old,
            "ref_per_token_logps": ref,
            "advantages": advantages[first : first + len(inputs)],
            "multimodal_inputs": multimodal_inputs,
            "miou": miou,
        }

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        if return_outputs:
            raise ValueError("no outputs here")
        slot = self._step % self.args.gradient_accumulation_steps
        if self.state.global_step % self.num_iterations == 0:
            self._buffered_inputs[slot] = self._generate_and_score_completions(inputs, model)
        inputs = self._buffered_inputs[slot]
        self._step += 1
        prompt_ids, mask = inputs["prompt_ids"], inputs["completion_mask"]
        input_ids = torch.cat([prompt_ids, inputs["completion_ids"]], 1)
        attention_mask = torch.cat([inputs["prompt_mask"], mask], 1)
        logps = self._get_per_token_logps(model, input_ids, attention_mask, **inputs["multimodal_inputs"])
        logps = logps[:, prompt_ids.shape[1] - 1 :]
        old = inputs["old_per_token_logps"] if self.num_iterations > 1 else logps.detach()
        ratio, advantages = (logps - old).exp(), inputs["advantages"][:, None]
        plain, clipped = ratio * advantages, ratio.clamp(1 - self.epsilon, 1 + self.epsilon) * advantages
        per_token = -torch.min(plain, clipped)
        if self.args.miou_adjust:
            weights = {
                "exp": lambda m: math.exp(1 - m),
                "power": lambda m: 1.05 - m,
                "log": lambda m: -math.log(0.02 + m),
            }
            per_token = per_token * weights[self.args.miou_adjust_math](inputs["miou"])
        if self.beta:
            ahead = inputs["ref_per_token_logps"] - logps
            kl = ahead.exp() - ahead - 1
            per_token = per_token + self.beta * kl
            self._metrics["kl"].append(((kl * mask).sum(1) / mask.sum(1)).mean().item())
        self._metrics["clip_ratio"].append((((plain > clipped).float() * mask).sum() / mask.sum()).item())
        return ((per_token * mask).sum(1) / mask.sum(1)).mean()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        metrics = {name: sum(values) / len(values) for name, values in self._metrics.items()}
        self._metrics.clear()
        super().log(logs | metrics, start_time)
