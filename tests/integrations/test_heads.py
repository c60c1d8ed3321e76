"""Scores out of a model's output embedding: models that do something to their logits afterwards are found out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from univg_fast.integrations.heads import head_of, scoring

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
}
AFTERWARDS: dict[str, dict[str, Any]] = {  # each family has another name for it
    "Gemma2": {"final_logit_softcapping": 30.0},
    "Granite": {"logits_scaling": 2.0},
    "Cohere": {"logit_scale": 0.5},
    "RecurrentGemma": {"logits_soft_cap": 30.0, "lru_width": 16, "block_types": ["attention"]},
    "FalconH1": {"lm_head_multiplier": 0.5, "mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8},
}
IDS = torch.arange(1, 9)[None]
ROWS, TARGETS = torch.tensor([2, 4, 5]), torch.tensor([7, 1, 30])


def make(family: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SMALL | settings)
    return getattr(transformers, f"{family}ForCausalLM")(config)


def score(model: Any, rows: torch.Tensor = ROWS, targets: torch.Tensor = TARGETS) -> torch.Tensor:
    with scoring(model, rows, targets):
        out: torch.Tensor = model(input_ids=IDS).logits
    return out


@pytest.mark.parametrize("family", AFTERWARDS)
def test_a_model_that_changes_its_logits_is_refused(family: str) -> None:
    model = make(family, **AFTERWARDS[family])
    for _ in range(2):  # a refused model is not one that was seen to be right
        with pytest.raises(ValueError, match=f"{family}ForCausalLM changes what its output embedding makes"):
            score(model)
    assert not model._forward_hooks and "forward" not in vars(model.lm_head)


@pytest.mark.parametrize(("family", "off"), [("Granite", {"logits_scaling": 1.0}), ("Llama", {}), ("Qwen3", {})])
def test_others_score_what_their_logits_say(family: str, off: dict[str, Any]) -> None:
    model = make(family, **off)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits[0, ROWS].log_softmax(-1)
        found = score(model)[0]
    torch.testing.assert_close(found[:, 0], expected.gather(1, TARGETS[:, None])[:, 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[:, 1], -(expected.exp() * expected).sum(-1), rtol=1e-5, atol=1e-6)


def test_a_first_call_without_rows_proves_nothing() -> None:
    model, none = make("Gemma2", final_logit_softcapping=30.0), torch.empty(0, dtype=torch.int64)
    assert score(model, none, none).shape == (1, 0, 2)
    with pytest.raises(ValueError, match="changes what"):
        score(model)


def test_only_the_first_call_is_looked_at() -> None:
    """To look is to wait for the device."""
    model, hooks = make("Llama"), list[int]()
    for _ in range(2):
        with scoring(model, ROWS, TARGETS):
            hooks.append(len(model._forward_hooks))
            model(input_ids=IDS)
    assert hooks == [1, 0] and not model._forward_hooks


def test_scores_in_another_dtype_are_refused() -> None:
    """As mixed precision may cast a root's outputs: log-probabilities would lose all but eight bits."""
    model = make("Llama")

    def cast(module: Any, args: Any, output: Any) -> None:
        output.logits = output.logits.bfloat16()

    model.register_forward_hook(cast)
    with pytest.raises(ValueError, match="another dtype"):
        score(model)


def test_a_model_that_multiplies_elsewhere_is_refused() -> None:
    model = make("Llama")
    weight, forward = model.lm_head.weight, model.forward

    def around(**inputs: Any) -> Any:
        out = forward(**inputs)
        out.logits = model.model(**inputs).last_hidden_state @ weight.T
        return out

    model.forward = around
    with pytest.raises(ValueError, match="changes what"):
        score(model)


class Quantized(nn.Linear):
    """As libraries for quantization make them: a linear layer whose forward is its own."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden, self.weight.round())


def test_a_quantized_output_embedding_is_refused() -> None:
    model = make("Llama")
    weight = model.lm_head.weight
    model.lm_head = Quantized(16, 40, bias=False)
    with pytest.raises(ValueError, match="must be a plain linear layer, got Quantized"):
        head_of(model)
    model.lm_head = nn.Linear(16, 40, bias=False)
    model.lm_head.weight = nn.Parameter(weight.detach().to(torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"floating-point weight, got torch\.uint8"):
        head_of(model)
