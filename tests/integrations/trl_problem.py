"""TRL's GRPOTrainer on a text model that trains in a moment; every token is a word, and rewards are counts of words."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast, Qwen2Config, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

VOCAB = 61
WORDS = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(VOCAB - 3))]
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
NAMES = ("w3 w4 w5 w6", "w7", "w8 w9 w10", "w11 w12 w13 w14 w15 w16")

Run = tuple[list[dict[str, float]], list[dict[str, Tensor]]]


def assert_same(ours: Run, theirs: Run, rtol: float = 1e-5) -> None:
    """Every logged number, and every parameter's gradient by its largest entry."""
    assert len(ours[0]) == len(theirs[0]) > 0 and len(ours[1]) == len(theirs[1])
    for mine, other in zip(ours[0], theirs[0], strict=True):
        assert mine == pytest.approx(other, rel=rtol, abs=1e-6, nan_ok=True)
    for mine, other in zip(ours[1], theirs[1], strict=True):
        assert mine.keys() == other.keys()
        for name, gradient in other.items():
            error = (mine[name] - gradient).abs().max()
            assert error <= rtol * gradient.abs().max() + 1e-8, f"{name}: {error}"


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def iou(completions: list[str], **columns: Any) -> list[float]:
    """Of each completion a number in [0, 1] that differs within and between groups."""
    return [sum(int(word[1:]) for word in text.split() if word[0] == "w") % 97 / 97 for text in completions]


def short(completions: list[str], **columns: Any) -> list[float]:
    return [-0.1 * len(text.split()) for text in completions]


def write_model(folder: Path, model: PreTrainedConfig | None = None, dtype: torch.dtype = torch.float32) -> None:
    """The reference and its tokenizer, to `folder`/model."""
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(deepcopy(model) if model else Qwen2Config(**SMALL))
    generator = torch.Generator().manual_seed(3)
    for parameter in reference.parameters():
        parameter.data.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    reference.to(dtype).save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")


def trainer(
    folder: Path,
    cls: type = GRPOTrainer,
    config: type = GRPOConfig,
    model: PreTrainedConfig | None = None,
    dtype: torch.dtype = torch.float32,
    peft_config: Any = None,
    **settings: Any,
) -> Any:
    """Two prompts of four completions a micro-batch, two micro-batches a step; the policy lies off the reference."""
    if not (folder / "model").exists():
        write_model(folder, model, dtype)
    policy = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(4)
    for parameter in policy.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    defaults = {
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 7,
        "beta": 0.1,
        "learning_rate": 0.1,
        "optim": "sgd",  # Adam makes whole steps of a gradient's last digit
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "temperature": 0.9,
    }
    made = cls(
        model=policy,
        args=config(output_dir=str(folder / "out"), **defaults | settings),
        processing_class=tokenizer(),
        reward_funcs=[iou, short],
        train_dataset=Dataset.from_dict({"prompt": list(NAMES) * 4}),
        peft_config=peft_config,
    )
    return made


def weigh_by_hand(made: Any, group: int = 4) -> list[Tensor]:
    """TRL's own loss with φ = e^(1 - mIoU), without the drop-in: φ > 0 may as well stand in the advantages.

    Returns the list in which φ [completions of all ranks] of each generation batch will be.
    """
    calculate, generate = made._calculate_rewards, made._generate_and_score_completions
    found: list[Tensor] = []

    def rewards(*arguments: Any) -> Tensor:
        scored = calculate(*arguments)
        found.append((1 - scored[:, 0].view(-1, group).mean(1)).exp().repeat_interleave(group))
        return scored

    def weighed(inputs: Any) -> dict[str, Any]:
        output = generate(inputs)
        phi = found[-1].view(made.accelerator.num_processes, -1)[made.accelerator.process_index]
        return output | {"advantages": output["advantages"] * phi.to(output["advantages"])}

    made._calculate_rewards, made._generate_and_score_completions = rewards, weighed
    return found


def timeless(row: dict[str, float]) -> dict[str, float]:
    """A logged row without what depends on the machine's speed."""
    clock = ("runtime", "per_second", "step_time", "flos", "profiling/", "train_loss")
    return {name: value for name, value in row.items() if not any(word in name for word in clock)}


def gradient(parameter: Tensor) -> Tensor | None:
    """The whole of it, over all ranks, whoever holds its parts."""
    if hasattr(parameter, "ds_id"):  # ZeRO-3's
        from deepspeed.utils import safe_get_full_grad

        whole = safe_get_full_grad(parameter)
        return None if whole is None else whole.clone()
    found = parameter.grad
    return found.full_tensor() if isinstance(found, DTensor) else None if found is None else found.clone()


class Watch(TrainerCallback):
    """Gradients as the optimizer gets them, step by step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.gradients = trainer, list[dict[str, Tensor]]()

    def look(self) -> None:
        found = {name: gradient(p) for name, p in self.trainer.model.named_parameters() if p.requires_grad}
        self.gradients.append({name: one for name, one in found.items() if one is not None})

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self.trainer.is_deepspeed_enabled:  # its engine steps inside of accelerate's backward()
            engine = self.trainer.model_wrapped
            step = engine.step
            engine.step = lambda *arguments, **named: (self.look(), step(*arguments, **named))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if not self.trainer.is_deepspeed_enabled:
            self.look()


def run(made: Any) -> Run:
    """(what it logs, its gradients) at each step."""
    watch = Watch(made)
    made.add_callback(watch)
    made.train()
    made.remove_callback(watch)
    return [timeless(row) for row in made.state.log_history if "loss" in row], watch.gradients
