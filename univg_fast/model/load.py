"""Models from a local folder, or from a built-in small config with seeded random weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel

from univg_fast.model.attention import TEXT, VISION
from univg_fast.model.families import FAMILIES, family_of

TINY = "_tiny"  # ends the names of the families' small configs
ADAPTERS = "adapter_config.json"  # peft's: a folder with it holds LoRA adapters for another folder's model
SUPPORTED = ("5.16", "5.24")


def builtin_configs() -> list[str]:
    """Names of the small configs that come with the package."""
    return sorted(name + TINY for name in FAMILIES)


def check_version(have: str = transformers.__version__) -> None:
    """RuntimeError unless this is a transformers that the package was proved with."""
    if not Version(SUPPORTED[0]) <= Version(have) < Version(SUPPORTED[1]):
        raise RuntimeError(
            f"transformers: expected >={SUPPORTED[0]},<{SUPPORTED[1]}, got {have}; "
            "run `pip install -c constraints.txt transformers`"
        )


def check_path(path: str) -> None:
    """ValueError unless `path` is a transformers folder or a built-in config's name. Nothing is ever downloaded."""
    if path not in builtin_configs() and not (Path(path) / "config.json").is_file():
        raise ValueError(
            f"model.path: expected a local folder with a config.json or one of {builtin_configs()}, got {path!r}"
        )


def read_config(path: str) -> PretrainedConfig:
    """The config in a transformers folder. ValueError if it is damaged, or of no family that this package knows."""
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path)
    except (ValueError, OSError) as error:  # paragraphs that do not name the folder
        raise ValueError(
            f"model.path: expected {path}/config.json of a model of {sorted(FAMILIES)}, got one that transformers does "
            f"not take ({_first_line(error)}); copy it anew from where the model comes from"
        ) from error
    if config.model_type not in FAMILIES:
        raise ValueError(f"model.path: {path} holds a {config.model_type!r} model; supported: {sorted(FAMILIES)}")
    return config


def read_tokenizer(path: str) -> Any:
    """The tokenizer in a transformers folder, or in one of LoRA adapters. ValueError if it holds none with the special
    tokens of the Qwen2-VL family, or as of `read_config`."""
    if (Path(path) / "config.json").is_file():
        read_config(path)  # of a model_type that it does not know transformers makes any tokenizer
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path)
    except (ValueError, OSError) as error:
        raise _no_tokenizer(path, _first_line(error)) from error
    if "<|image_pad|>" not in tokenizer.get_vocab():  # without a file transformers makes an empty one
        raise _no_tokenizer(path, "it has no token <|image_pad|>")
    return tokenizer


def _no_tokenizer(path: str, why: str) -> ValueError:
    return ValueError(
        f"model.path: expected a tokenizer of the Qwen2-VL family in {path}, got none ({why}); copy tokenizer.json and "
        "tokenizer_config.json there from where the model comes from"
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(": ")


def load_model(
    path: str, dtype: torch.dtype = torch.float32, *, vocab: dict[str, int] | None = None, seed: int = 0
) -> PreTrainedModel:
    """A model with this package's attention. `path`: a transformers folder, or a built-in config's name; or a folder of
    LoRA adapters, as peft writes it, which come merged into the model that it names.

    A built-in config needs `vocab` (token -> id of its tokenizer, for the vocabulary's size and the special ids) and is
    initialised from `seed`. ValueError if `path` is neither, the family is unknown, or the folder's weights lack one of
    the model's or have another shape.
    """
    check_version()
    attention = {"text_config": TEXT, "vision_config": VISION}
    if path in builtin_configs():
        config = small_config(path, vocab or {})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = FAMILIES[config.model_type].CLASSES[1]._from_config(config, attn_implementation=attention)
        for parameter in model.parameters():  # buffers stay: rounded rotary frequencies are other positions
            parameter.data = parameter.data.to(dtype)
        return model
    check_path(path)
    if (Path(path) / ADAPTERS).is_file():
        import peft

        base = load_model(adapted_model(path), dtype, vocab=vocab, seed=seed)
        merged: PreTrainedModel = peft.PeftModel.from_pretrained(
            base, path, autocast_adapter_dtype=False, torch_device=str(base.device)
        ).merge_and_unload()
        return merged
    config = read_config(path)
    # transformers would draw at random what does not come, and only log it; tied weights are not counted as missing
    model, report = (
        FAMILIES[config.model_type]
        .CLASSES[1]
        .from_pretrained(
            path, dtype=dtype, attn_implementation=attention, output_loading_info=True, ignore_mismatched_sizes=True
        )
    )
    for problem in ("missing", "mismatched"):
        if keys := sorted(map(str, report[f"{problem}_keys"])):
            raise ValueError(
                f"model.path: expected every weight of a {config.model_type} model in {path}, got {len(keys)} "
                f"{problem}: {', '.join(keys[:5])}; is a shard lost, or the config.json another model's?"
            )
    return model


def adapted_model(path: str) -> str:
    """The model that the LoRA adapters in the folder `path` are for. ValueError if it is not there any more."""
    base = json.loads((Path(path) / ADAPTERS).read_text()).get("base_model_name_or_path") or ""
    try:
        check_path(base)
    except ValueError as error:
        raise ValueError(f"model.path: {path} holds LoRA adapters for {base!r}: {error}") from None
    return str(base)


def freeze_vision(model: Any, tower: bool = True, projector: bool = True) -> None:
    """Of a transformers model's vision tower nothing trains; `projector`: of what maps its features to the language
    model, which is a part of it."""
    model.model.visual.requires_grad_(not tower)
    for part in projector_parts(model).values():
        part.requires_grad_(not projector)


def projector_parts(model: Any) -> dict[str, torch.nn.Module]:
    """What maps the tower's features to the language model, by name within it; a list, which peft refuses, in parts."""
    found: dict[str, torch.nn.Module] = {}
    for name in family_of(model.config).projector:
        part = model.model.visual.get_submodule(name)
        parts = part.named_children() if isinstance(part, torch.nn.ModuleList) else (("", part),)
        found |= {f"{name}.{key}".rstrip("."): inner for key, inner in parts}
    return found


def small_config(name: str, vocab: dict[str, int]) -> PretrainedConfig:
    """The built-in config `name` with vocabulary size and special token ids taken from `vocab`."""
    module = FAMILIES[name.removesuffix(TINY)]
    raw: dict[str, Any] = copy.deepcopy(module.SMALL)
    ids = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    missing = [token for token in ids.values() if token not in vocab]
    if missing:
        raise ValueError(
            f"model.path={name}: the tokenizer lacks {missing}; a built-in config needs Qwen2-VL's special tokens"
        )
    raw["text_config"] |= {
        "vocab_size": len(vocab),
        "bos_token_id": vocab["<|endoftext|>"],
        "eos_token_id": vocab["<|im_end|>"],
        "pad_token_id": vocab["<|endoftext|>"],
    }
    raw |= {key: vocab[token] for key, token in ids.items()}
    return module.CLASSES[0](**raw)
