"""The model on packed rows: images once, one language-model pass, hidden states of the scored tokens only.

`PackedModel` is what DeepSpeed wraps. The vocabulary projection never happens here: a loss takes (hidden, weight), so
that `[tokens, vocab]` exists nowhere in training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.models.qwen2_vl.modeling_qwen2_vl import get_vision_position_ids

from univg_fast.model.families import family_of, image_layout
from univg_fast.packing.rows import Row

Head = Callable[[torch.Tensor, torch.Tensor], Any]  # (hidden [N, H], lm_head weight [V, H]) -> a loss, or log-probs


class PackedModel(nn.Module):
    """A transformers vision-language model, driven by packed rows. `model` stays reachable and unchanged."""

    model: Any  # a transformers model: its attributes are not known to a type checker

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.family = family_of(model.config)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def encode_images(self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> torch.Tensor:
        """Vision tower over all images at once. [patches, patch_dim], [n, 3] on the CPU -> [image tokens, H], in order.

        Images are encoded sorted by size, equal sizes as one batch, and put back in the given order.
        """
        grids = image_grid_thw.numpy()
        order, runs = image_layout(grids)
        sizes = torch.from_numpy(grids.prod(-1))
        shuffled = bool((order != range(len(order))).any())
        if shuffled:
            pixel_values = pixel_values.index_select(0, _spread(sizes, order).to(pixel_values.device))
        total = torch.tensor([0, len(pixel_values)], dtype=torch.int32)  # one chunk: `image_runs` splits it
        visual = self.model.model.visual
        features = visual(
            pixel_values.to(visual.dtype),
            grid_thw=image_grid_thw[order],
            # made on the host, where the grid stays
            position_ids=get_vision_position_ids(image_grid_thw[order], self.family.merge_size).to(pixel_values.device),
            cu_seqlens=total,
            max_seqlen=len(pixel_values),
            image_runs=runs,
        ).pooler_output
        if not shuffled:
            return features
        merged = sizes // self.family.merge_size**2
        back = torch.argsort(_spread(merged, order))
        return features.index_select(0, back.to(features.device))

    def embed(self, row: Row, features: torch.Tensor | None = None) -> torch.Tensor:
        """Token embeddings [1, T, H] with image features put in. `features`: this row's, if encoded before."""
        embeds = self.model.get_input_embeddings()(row.input_ids)
        if len(row.image_positions) == 0:
            return embeds
        if features is None:
            features = self.encode_images(row.pixel_values, row.image_grid_thw)
        return embeds[0].index_copy(0, row.image_positions, features.to(embeds.dtype))[None]

    def hidden(self, row: Row, features: torch.Tensor | None = None) -> torch.Tensor:
        """Last hidden states that predict the row's targets, [N, H]."""
        out = self.model.model.language_model(
            inputs_embeds=self.embed(row, features),
            position_ids=row.position_ids,
            layout=row.layout,
            use_cache=False,
        )
        return out.last_hidden_state[0].index_select(0, row.target_rows)

    def forward(self, row: Row, head: Head, features: torch.Tensor | None = None) -> Any:
        """`head(hidden, weight)` on the row's targets; called through the engine, so that its hooks run."""
        return head(self.hidden(row, features), self.model.lm_head.weight)


def _spread(sizes: torch.Tensor, order: Any) -> torch.Tensor:
    """Indices that gather whole blocks (of `sizes` rows each) in `order`."""
    starts = torch.cumsum(sizes, 0) - sizes
    return torch.cat([torch.arange(int(starts[i]), int(starts[i] + sizes[i])) for i in order])
