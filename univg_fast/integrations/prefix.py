"""One forward pass for all completions of a prompt: rows `[prompt | c_1 | ... | c_G]`, through the host's own model.

A batch of B sequences, G to a prompt, becomes one row without padding: each prompt and its images once, positions that
continue each prompt, and attention by `univg_kernels.shared_prefix_attention`. Hidden states of a token are what the
padded batch would give it, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor
from univg_kernels import SharedPrefix, shared_prefix, shared_prefix_attention

from .heads import bare
from .patching import Patch

_NAME = "univg_kernels_shared_prefix"
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


class Batch(NamedTuple):
    """What a row is made of, on the host: B sequences, prompts padded left and completions padded right."""

    ids: Tensor  # [B, L] int64
    mask: Tensor  # [B, L] bool
    prompt_length: int
    members: list[list[int]]  # the sequences of each prompt, in order
    grids: Tensor  # [images, 3] int64, of all B sequences one after the other


class SharedRow(NamedTuple):
    """Arguments of the model and what to read from it. N scored tokens, T of the row."""

    inputs: dict[str, Any]  # of model(...): input_ids [1, T], position_ids [3, 1, T], image_grid_thw; no pixels
    layout: SharedPrefix
    rows: Tensor  # [N] int64: which hidden state of the row predicts each scored token
    token_ids: Tensor  # [N] int64
    places: Tensor  # [N] int64: where each belongs in the flattened [B, L - 1]
    patches: list[int]  # of each image of the batch
    images: list[int]  # of the row, in order: those of each prompt once

    def pixels(self, pixel_values: Tensor | None) -> dict[str, Tensor]:
        """The last argument of the model: of the whole batch's pixel_values [patches, D] what the row has."""
        if pixel_values is None:
            return {}
        parts = pixel_values.split(self.patches)
        return {"pixel_values": torch.cat([parts[j] for j in self.images])}


def share_prompts(model: Any, batch: Batch, device: torch.device | str = "cpu") -> SharedRow:
    """The row of a batch, on `device`.

    Raises ValueError where members of a prompt differ in it, or images do not fit their tokens.
    """
    ids, mask, prompt_length, members, grids = batch
    images = _images_of(model, ids, mask, grids)
    kept = [j for m in members for j in images[m[0]]]
    positions = _prompt_positions(model, ids, mask, prompt_length, [m[0] for m in members], grids[kept])
    tokens, places_of_rope, spans, rows, targets, places = [], [], [], [], [], []
    start = 0
    for group, at in zip(members, positions, strict=True):
        prompt = _common_prompt(ids, mask, prompt_length, group)
        lengths: list[int] = []
        tokens.append(prompt)
        places_of_rope.append(at)
        end = start + len(prompt)
        for i in group:
            response = ids[i, prompt_length:][mask[i, prompt_length:]]
            n, offset = len(response), sum(lengths)
            before = torch.arange(end + offset - 1, end + offset - 1 + n)
            before[:1] = end - 1  # the prompt's last token predicts the first of every completion
            tokens.append(response)
            places_of_rope.append(at.max() + 1 + torch.arange(n).expand(len(at), n))
            rows.append(before)
            targets.append(response)
            places.append(i * (ids.shape[1] - 1) + prompt_length - 1 + mask[i, prompt_length:].nonzero()[:, 0])
            lengths.append(n)
        spans.append((len(prompt), lengths))
        start = end + sum(lengths)
    inputs: dict[str, Any] = {
        "input_ids": torch.cat(tokens)[None].to(device),
        "position_ids": torch.cat(places_of_rope, 1)[:, None].to(device),
        "use_cache": False,
    }
    if len(grids):
        inputs["image_grid_thw"] = grids[kept].to(device)
    before, token_ids, at = (torch.cat(x).to(device) for x in (rows, targets, places))
    layout = shared_prefix(spans).to(device)
    return SharedRow(inputs, layout, before, token_ids, at, grids.prod(-1).tolist(), kept)


def _images_of(model: Any, ids: Tensor, mask: Tensor, grids: Tensor) -> list[list[int]]:
    """Which images each sequence has: as many in a row as fill its image tokens."""
    config = bare(model).config
    if len(grids) == 0:
        return [[] for _ in ids]
    sizes = iter(enumerate((grids.prod(-1) // config.vision_config.spatial_merge_size**2).tolist()))
    found = []
    for i, count in enumerate(((ids == config.image_token_id) & mask).sum(-1).tolist()):
        mine, filled = [], 0
        while filled < count:
            j, size = next(sizes, (-1, count + 1))
            mine.append(j)
            filled += size
        if filled != count:
            raise ValueError(
                f"sequence {i} has {count} image tokens, and the images of image_grid_thw (in order) do not fill them "
                "exactly; a prompt was truncated, or image_grid_thw is of another batch"
            )
        found.append(mine)
    return found


def _common_prompt(ids: Tensor, mask: Tensor, length: int, group: Sequence[int]) -> Tensor:
    prompts = [ids[i, :length][mask[i, :length]] for i in group]
    for i, other in zip(group, prompts, strict=True):
        if not torch.equal(other, prompts[0]):
            raise ValueError(
                f"sequences {group[0]} and {i} must have one prompt to share it, got two; completions of a prompt must "
                "follow each other, num_generations of them: use shared_prefix=False for another order"
            )
    return prompts[0]


def _prompt_positions(
    model: Any, ids: Tensor, mask: Tensor, length: int, firsts: list[int], grids: Tensor
) -> list[Tensor]:
    """[3, P] of each prompt, by the model's own rule."""
    ids, mask = ids[firsts, :length], mask[firsts, :length]
    kinds = image_kinds(model, ids)
    positions, _ = plain(model).model.get_rope_index(ids, **kinds, image_grid_thw=grids, attention_mask=mask)
    return [positions[:, i, mask[i]] for i in range(len(ids))]


def _attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **more: Any) -> tuple[Tensor, None]:
    """q: [1, heads, T, D]; k, v: [1, kv_heads, T, D]. -> ([1, T, heads, D], None), as transformers' functions do."""
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
    return shared_prefix_attention(q, k, v, more["layout"], scale=more.get("scaling"))[None], None


def patch_attention(patch: Patch, model: Any) -> None:
    """Let the language model's attention modules take `layout=`; without one they are what they were.

    Raises ValueError for another family, for layers of another attention and for dropout in it.
    """
    family, text = plain(model).config.model_type, plain(model).config.get_text_config()
    if family not in FAMILIES:
        raise ValueError(
            f"prompts are shared for models of type {', '.join(FAMILIES)}, got {family}; pass shared_prefix=False"
        )
    if dropout := getattr(text, "attention_dropout", 0.0):
        raise ValueError(
            f"attention_dropout must be 0 to share prompts, got {dropout}, which shared_prefix_attention does not "
            "have; set it to 0 in the model's config, or pass shared_prefix=False"
        )
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(
            f"{type(bare(model)).__name__} has attention layers of kind {', '.join(sorted(kinds))}, expected only "
            "full_attention to share prompts; pass shared_prefix=False"
        )
    for layer in language_model(model).layers:
        patch.replace(layer.self_attn, "forward", _with_layout(layer.self_attn))


def _with_layout(attention: Any) -> Callable[..., Any]:
    """Inside of what gradient checkpointing runs again, so that the second run attends as the first one did."""
    theirs, config = attention.forward, attention.config

    def forward(*args: Any, **kwargs: Any) -> Any:
        if "layout" not in kwargs:
            return theirs(*args, **kwargs)
        with _implementation(config):
            return theirs(*args, **kwargs)

    return forward


@contextmanager
def _implementation(config: Any) -> Iterator[None]:
    """Nothing stays in transformers' table of attentions, which is one for all models of the process."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before, outermost = config._attn_implementation, _NAME not in ALL_ATTENTION_FUNCTIONS
    ALL_ATTENTION_FUNCTIONS[_NAME] = _attention
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        if outermost:
            del ALL_ATTENTION_FUNCTIONS[_NAME]


@contextmanager
def attending(model: Any, layout: SharedPrefix) -> Iterator[None]:
    """While it lasts, the language model of a model that `patch_attention` has seen attends as `layout` says."""

    def add(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"layout": layout}

    text = language_model(model)
    hook = text.register_forward_pre_hook(add, with_kwargs=True)
    try:
        with _implementation(text.config):  # of which transformers knows no mask, so it makes none
            yield
    finally:
        hook.remove()


def language_model(model: Any) -> Any:
    return plain(model).model.language_model


def plain(model: Any) -> Any:
    """The model of transformers inside of engines and adapters."""
    base = bare(model)
    return base.get_base_model() if hasattr(base, "get_base_model") else base


def image_kinds(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """What transformers 5 wants to be told beside images: which of the tokens [B, L] are theirs."""
    base = plain(model)
    if "mm_token_type_ids" not in signature(type(base).forward).parameters:
        return {}
    return {"mm_token_type_ids": (ids == base.config.image_token_id).int()}
