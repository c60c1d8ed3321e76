"""The model on packed rows: images once, one language-model pass, hidden states of the scored tokens only.

`PackedModel` is what DeepSpeed wraps. The vocabulary projection never happens here: a loss takes (hidden, weight), so
that `[tokens, vocab]` exists nowhere in training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from univg_fast.model.attention import attention_of
from univg_fast.model.families import family_of
from univg_fast.model.features import ImageFeatures
from univg_fast.model.patches import repeat_frames, take_single_frames
from univg_fast.packing.rows import Row
from univg_fast.packing.vision import VisionInputs

Head = Callable[[torch.Tensor, torch.Tensor], Any]  # (hidden [N, H], lm_head weight [V, H]) -> a loss, or log-probs


class PackedModel(nn.Module):
    """A transformers vision-language model, driven by packed rows; `model` can still be called as transformers' own."""

    model: Any  # a transformers model: its attributes are not known to a type checker

    def __init__(self, model: Any, attention: str = "auto", *, fold_frames: bool = True) -> None:
        """`fold_frames` False: the tower sees every copy of a still image's frame, as in transformers (an ablation)."""
        super().__init__()
        self.model, self.fold_frames = model, fold_frames
        self.family = family_of(model.config)
        self.family.prepare(model)
        take_single_frames(model.model.visual.patch_embed)
        self.attention = attention_of(model, attention)  # rows for this model are built for `self.attention.face`
        self.lines = [self.attention.line]  # what was chosen, for a person

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def vision_trains(self) -> bool:
        """Whether a step changes the features of images: where not, they can be made once for all that a step does."""
        return any(p.requires_grad for p in self.model.model.visual.parameters())

    def encode_images(self, pixel_values: torch.Tensor, vision: VisionInputs) -> ImageFeatures:
        """Vision tower over all images at once, [patches, patch_dim] -> features of M tokens, in the given order."""
        if vision.order is not None:
            pixel_values = pixel_values.index_select(0, vision.order)
        if not self.fold_frames:
            pixel_values = repeat_frames(pixel_values, self.family.temporal_patch_size)
        visual = self.model.model.visual
        out = visual(pixel_values.to(visual.dtype), vision=vision, **vision.host, **vision.tensors)
        count = sum(vision.image_tokens)  # none of them where the only image is a blank one

        def given_order(x: torch.Tensor) -> torch.Tensor:
            return (x if vision.back is None else x.index_select(0, vision.back))[:count]

        levels = getattr(out, "deepstack_features", None) or ()
        return ImageFeatures(given_order(out.pooler_output), tuple(given_order(level) for level in levels))

    def states(self, row: Row, features: ImageFeatures | None = None, layout: Any = None) -> torch.Tensor:
        """Last hidden states of all the row's tokens, [T, H].

        `features`: the row's images, if encoded before. `layout` stands in for `row.layout`.
        """
        embeds = self.model.get_input_embeddings()(row.input_ids)
        if features is None and (len(row.image_positions) or self._tower_takes_part()):
            features = self.encode_images(row.pixel_values, row.vision)
        if features is not None:
            embeds = embeds[0].index_copy(0, row.image_positions, features.pooled.to(embeds.dtype))[None]
        more = {}
        if features is not None and features.levels:
            more = {"visual_pos_masks": row.image_positions, "deepstack_visual_embeds": features.levels}
        return self._language(embeds, row.position_ids, row.layout if layout is None else layout, **more)[0]

    def step(self, token_ids: torch.Tensor, position_ids: torch.Tensor, layout: Any) -> torch.Tensor:
        """One token of each of B sequences: [B] int64, [3, B, 1] int64 -> [B, H]. `layout` holds keys and values."""
        embeds = self.model.get_input_embeddings()(token_ids[:, None])
        return self._language(embeds, position_ids, layout)[:, 0]

    def hidden(self, row: Row, features: ImageFeatures | None = None) -> torch.Tensor:
        """Last hidden states that predict the row's targets, [N, H]."""
        return self.states(row, features).index_select(0, row.target_rows)

    def forward(self, row: Row, head: Head, features: ImageFeatures | None = None) -> Any:
        """`head(hidden, weight)` on the row's targets; called through the engine, so that its hooks run."""
        return head(self.hidden(row, features), self.model.lm_head.weight)

    def _tower_takes_part(self) -> bool:
        """Whether a row without images goes through the tower too: it trains, or ZeRO 3 gathers it on all ranks."""
        return self.vision_trains or any(hasattr(p, "ds_id") for p in self.model.model.visual.parameters())

    def _language(self, embeds: torch.Tensor, position_ids: torch.Tensor, layout: Any, **more: Any) -> torch.Tensor:
        out = self.model.model.language_model(
            inputs_embeds=embeds, position_ids=position_ids, layout=layout, use_cache=False, **more
        )
        return out.last_hidden_state
