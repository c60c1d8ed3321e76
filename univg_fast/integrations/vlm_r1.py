"""VLM-R1 and UniVG-R1: `VLMGRPOTrainer` scores completions only, each prompt once, and weighs groups by φ.

Their `_get_per_token_logps` runs the whole prompt, images included, once for each of its G completions, and makes
logits of every token of it. The loss itself stays theirs: KL, clipping, what UniVG-R1 adds, and all metrics.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from univg_kernels import GrpoConfig

from .heads import bare, head_of, scoring, spread
from .patching import Patch, all_or_nothing
from .phi import of_means, refuse_negative
from .prefix import Batch, attending, image_kinds, patch_attention
from .rows import Rows
from .versions import require, require_signature

TRANSFORMERS = ("5.19",)  # whose Qwen-VL attention takes a function from outside, and which the tests run with
_IMAGES = ("pixel_values", "image_grid_thw")
_SETTINGS = ("num_generations", "num_iterations", "accelerator", "reward_funcs")


def patch(
    trainer: Any,
    *,
    phi: str | None = None,
    difficulty: str = "exp",
    difficulty_power: float = 1.0,
    shared_prefix: bool = True,
) -> Patch:
    """Drop-in for a `VLMGRPOTrainer`, before `train()`.

    phi: name of the reward function whose value is a completion's IoU. The policy term of each group is multiplied by
        φ of its mean (`univg_kernels.difficulty_weight`: difficulty, difficulty_power), logged as difficulty_weight,
        with the mean as miou. UniVG-R1's own weight, one for all that a rank holds, has to be off then.
    shared_prefix: one forward pass over each prompt, however many images it has, for all of its completions; needs
        transformers 5, for Qwen2-VL, Qwen2.5-VL and Qwen3-VL. False: the host's own passes, logits of completions only.
    Returns: a Patch; restore it after the backward pass of what it has scored.
    Raises: ValueError for a host of another shape, and for settings that cannot be.
    """
    require_signature(trainer._get_per_token_logps, ("model", "input_ids", "attention_mask"))
    missing = [name for name in _SETTINGS if not hasattr(trainer, name)]
    if missing:
        raise ValueError(f"{type(trainer).__name__} has no {', '.join(missing)}; expected a VLMGRPOTrainer")
    if shared_prefix:
        require("transformers", TRANSFORMERS)
    with all_or_nothing() as done:
        _replace_scoring(done, trainer, shared_prefix)
        if phi is not None:
            _replace_advantages(done, trainer, phi, difficulty, difficulty_power)
    return done


def _replace_scoring(done: Patch, trainer: Any, shared: bool) -> None:
    models = [m for m in (trainer.model, getattr(trainer, "ref_model", None)) if m is not None]
    for model in models:
        head_of(model)
        if shared:
            patch_attention(done, model)
    batches = max(trainer.args.gradient_accumulation_steps, 1)
    prompts: deque[Tensor] = deque(maxlen=batches)
    kept = Rows(batches, trainer.num_iterations)
    policy = bare(trainer.model)
    generate = policy.generate

    def remember(*args: Any, **kwargs: Any) -> Any:
        """`_get_per_token_logps` is not told where completions begin; what was generated from tells."""
        prompts.append(_on_host(kwargs["input_ids"] if "input_ids" in kwargs else args[0]))
        return generate(*args, **kwargs)

    def score(model: Any, input_ids: Tensor, attention_mask: Tensor, **images: Any) -> Tensor:
        ids = _on_host(input_ids)
        length = _prompt_length(prompts, ids)
        if not shared:
            return _score_rows(model, input_ids, attention_mask, length, images)
        unknown = [name for name in images if name not in (*_IMAGES, "mm_token_type_ids")]
        if unknown:
            raise ValueError(f"prompts with {', '.join(unknown)} cannot be shared; pass shared_prefix=False")
        pixels, grids = (images.get(name) for name in _IMAGES)
        grids = torch.zeros(0, 3, dtype=torch.int64) if grids is None else _on_host(grids)
        batch = Batch(ids, _on_host(attention_mask).bool(), length, _members(trainer, len(ids)), grids)
        row = kept.of(model, batch, input_ids.device, keep=trainer.model.training)
        with attending(model, row.layout), scoring(model, row.rows, row.token_ids):
            scored = model(**row.inputs, **row.pixels(pixels)).logits[0, :, 0]
        return _spread(scored, row.places, input_ids)

    done.replace(policy, "generate", remember)
    done.replace(trainer, "_get_per_token_logps", score)


def _on_host(values: Tensor) -> Tensor:
    """A copy, on a CPU too: what the host writes into its own is seen then."""
    return values.to("cpu", copy=True)


def _prompt_length(prompts: deque[Tensor], ids: Tensor) -> int:
    """Of the prompts that completions were generated for; the shortest that fits, which leaves no completion out."""
    fits = [p.shape[1] for p in prompts if len(p) == len(ids) and torch.equal(ids[:, : p.shape[1]], p)]
    if not fits:
        raise ValueError(
            f"_get_per_token_logps got sequences {list(ids.shape)} that do not begin with prompts of the last "
            f"{prompts.maxlen} calls of model.generate; the drop-in needs completions that the trainer's own model made"
        )
    return min(fits)


def _members(trainer: Any, batch: int) -> list[list[int]]:
    """The sequences of this rank that belong to one prompt: the sampler repeats each num_generations times in a row."""
    first, size = trainer.accelerator.process_index * batch, trainer.num_generations
    groups: dict[int, list[int]] = {}
    for i in range(batch):
        groups.setdefault((first + i) // size, []).append(i)
    return list(groups.values())


def _score_rows(model: Any, input_ids: Tensor, attention_mask: Tensor, length: int, images: dict[str, Any]) -> Tensor:
    """The host's padded forward pass, where the output embedding sees completions only."""
    wanted = torch.zeros_like(attention_mask, dtype=torch.bool)
    wanted[:, length - 1 : -1] = attention_mask[:, length:].bool()
    rows = wanted.flatten().nonzero()[:, 0]
    if images.get("image_grid_thw") is not None:  # the host gives None for a batch of texts
        images = image_kinds(model, input_ids) | images
    with scoring(model, rows, input_ids.flatten()[rows + 1]):
        scored = model(input_ids=input_ids, attention_mask=attention_mask, **images).logits[0, :, 0]
    return _spread(scored, rows - rows // input_ids.shape[1], input_ids)


def _spread(scored: Tensor, places: Tensor, input_ids: Tensor) -> Tensor:
    """[N] -> [B, L - 1], as the host returns it; 0 for prompts and padding, which it does not read."""
    return spread(scored, places, (len(input_ids), input_ids.shape[1] - 1))


def _replace_advantages(done: Patch, trainer: Any, phi: str, difficulty: str, power: float) -> None:
    config = GrpoConfig(difficulty=difficulty, difficulty_power=power)  # refuses what is no variant
    if getattr(trainer.args, "miou_adjust", False):
        raise ValueError("phi weighs groups by their mIoU, and so does miou_adjust=True; set miou_adjust to False")
    if trainer.num_iterations > 1:  # with 1 the ratio is 1 and nothing is clipped
        refuse_negative(difficulty, "with num_iterations > 1")
    names = [_name(function) for function in trainer.reward_funcs]
    if phi not in names:
        raise ValueError(f"phi must name a reward function, got {phi!r}; the trainer has {', '.join(names)}")
    at, last = names.index(phi), list[Any]()
    generate = trainer._generate_and_score_completions

    def weighted(*args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs: dict[str, Any] = generate(*args, **kwargs)
        advantages = inputs["advantages"]
        weight, miou = _weights(trainer, torch.tensor(last.pop()).to(advantages), config)
        trainer._metrics["difficulty_weight"].append(weight.mean().item())
        trainer._metrics["miou"].append(miou.nanmean().item())
        first = trainer.accelerator.process_index * len(advantages)
        return inputs | {"advantages": advantages * weight[first : first + len(advantages)]}

    functions = list(trainer.reward_funcs)
    functions[at] = _recorded(functions[at], last)
    done.replace(trainer, "reward_funcs", functions)
    done.replace(trainer, "_generate_and_score_completions", weighted)


def _recorded(function: Callable[..., Any], last: list[Any]) -> Callable[..., Any]:
    def recorded(*args: Any, **kwargs: Any) -> Any:
        last[:] = [function(*args, **kwargs)]
        return last[0]

    recorded.__name__ = _name(function)  # the host logs by it
    return recorded


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _weights(trainer: Any, ious: Tensor, config: GrpoConfig) -> tuple[Tensor, Tensor]:
    """φ of all ranks' completions [B * ranks] and the mIoU of each group, from this rank's IoUs [B]."""
    every = trainer.accelerator.gather(ious)
    miou = every.view(-1, trainer.num_generations).nanmean(-1)
    return of_means(miou, config).repeat_interleave(trainer.num_generations), miou
