"""TRL's side of `bench.trl_step`: its GRPOTrainer on a Qwen2-VL, watched, on a machine without torchvision."""

from __future__ import annotations

import ctypes
import gc
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import trl.trainer.utils
from datasets import Dataset, Image
from datasets import List as ListOf
from transformers import (
    PrinterCallback,
    ProcessorMixin,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from univg_fast.data.samples import Processor
from univg_fast.rewards import score
from univg_fast.structs import Record

from .device import Device, Sample
from .rollout import Size
from .trl_problem import TERMS

NOISE = 0.3  # of a weight's standard deviation: how far the policy lies off the reference
TEMPLATE = (  # `univg_fast/data/prompts.py`'s "short"; each image of a message stands before its text
    "<|im_start|>{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}<|im_end|><|im_start|>"
)


class ImagesOnly(Qwen2VLProcessor):
    """Qwen2-VL's processor without its video half, which cannot be imported without torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        ids = tokenizer.convert_tokens_to_ids([self.image_token, self.video_token])
        self.image_token_id, self.video_token_id = ids
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


class Clock:
    """A sample of what happens between two calls, as `Device.sample` takes one of a function."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def start(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # else a step's peak hides in what the other one freed
        self.opened = self.device.open()

    def stop(self) -> Sample:
        return self.device.close(self.opened)


class WatchedTrainer(GRPOTrainer):
    """GRPOTrainer, with a clock around its own methods; none of them does anything else than theirs."""

    def watch(self, device: Device) -> None:
        self.clock, self.captured = Clock(device), []
        self.phases, self.proof = defaultdict(float), defaultdict(float)
        self.add_callback(_Update(self))
        self.begin(compact=False)

    def begin(self, compact: bool) -> None:
        """A step begins. `compact`: its head makes the logits of the responses only."""
        self.compact = compact
        self.phases.clear()
        self.clock.start()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.phases[name] += time.perf_counter() - began

    def _generate_single_turn(self, *args: Any, **more: Any) -> Any:
        with self.phase("gen"):
            return super()._generate_single_turn(*args, **more)

    def _calculate_rewards(self, *args: Any, **more: Any) -> Any:
        with self.phase("score"):
            return super()._calculate_rewards(*args, **more)

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **more: Any) -> Any:
        with self.phase("ref" if model is self.ref_model else "forward"), choosing(self.compact):
            return super()._get_per_token_logps_and_entropies(model, *args, **more)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
        self.update_began = time.perf_counter()
        if "grad_norm" not in self.proof:  # the first step, which is for the proof
            self.captured.append(inputs)
            self.compact = True
            with torch.no_grad():
                self.proof["loss, head on responses"] += float(super().compute_loss(model, inputs, *args, **more))
            self.compact = False
        return super().compute_loss(model, inputs, *args, **more)

    def training_step(self, *args: Any, **more: Any) -> Any:
        loss = super().training_step(*args, **more)
        self.add_update()
        if "grad_norm" not in self.proof:
            self.proof["loss"] += float(loss)
            if self.accelerator.sync_gradients:  # it was the last batch of the step
                gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
                self.proof["grad_norm"] = float(torch.nn.utils.get_total_norm(gradients))
                metrics = self._metrics["train"]
                self.proof |= {name: sum(metrics[name]) / len(metrics[name]) for name in ("kl", "reward")}
        return loss

    def add_update(self) -> None:
        now = time.perf_counter()
        self.phases["update"] += now - self.update_began
        self.update_began = now


class _Update(TrainerCallback):
    def __init__(self, trainer: WatchedTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, *args: Any, **more: Any) -> None:
        self.trainer.add_update()


def choosing(compact: bool) -> AbstractContextManager[Any]:
    """TRL's head asks one function whether to choose the positions that have a label, which on a CPU says no."""
    return patch.object(trl.trainer.utils, "_use_triton", lambda device: True) if compact else nullcontext()


def make_trainer(
    size: Size, folder: Path, records: list[Record], processor: Processor, steps: int, out: Path, device: Device
) -> WatchedTrainer:
    """One generation batch of all prompts; reference and update a group at a time, which takes half of the memory of
    everything at once and is no slower. Other defaults stay, but for what both sides share or a CPU has no use for."""
    torch.manual_seed(1)
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)  # attends by sdpa
    model.model.visual.requires_grad_(False)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad and p.ndim > 1):
            parameter.add_(NOISE * parameter.std() * torch.randn_like(parameter))
    config = GRPOConfig(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=size.group,
        gradient_accumulation_steps=size.prompts,
        num_generations=size.group,
        max_completion_length=size.tokens,
        # exactly that many, and of the tokens that ours may sample
        generation_kwargs={"min_new_tokens": size.tokens, "suppress_tokens": list(range(7))},
        loss_type="grpo",
        beta=0.04,
        use_bias_correction_kl=False,  # UniVG-R1's KL has no importance ratio
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        shuffle_dataset=False,
        use_cpu=device.kind == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    rows = {
        "prompt": [[{"role": "user", "content": r.question}] for r in records],
        "images": [list(r.images) for r in records],
        "number": list(range(len(records))),
    }
    trainer = WatchedTrainer(
        model=model,
        args=config,
        processing_class=ImagesOnly(processor.image_processor, processor.tokenizer, chat_template=TEMPLATE),
        reward_funcs=[rewards(records)],
        train_dataset=Dataset.from_dict(rows).cast_column("images", ListOf(Image())),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.watch(device)
    return trainer


def rewards(records: list[Record]) -> Callable[..., list[float]]:
    """This package's reward as a function for TRL."""

    def reward(completions: list[Any], number: list[int], **columns: Any) -> list[float]:
        texts = [messages[0]["content"] for messages in completions]
        return score(texts, [records[i] for i in number], TERMS).total.tolist()

    return reward
