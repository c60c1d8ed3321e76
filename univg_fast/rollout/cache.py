"""Key/value caches of a rollout: a prompt's keys and values are stored once and read by all of its G rows."""

from __future__ import annotations

import torch

from univg_fast.model.attention import shared_prefix_attention
from univg_fast.packing.layout import AttentionLayout


class Prefill:
    """Runs a packed row of prompts and keeps each layer's keys and values."""

    def __init__(self, layout: AttentionLayout) -> None:
        self.layout = layout
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float) -> torch.Tensor:
        self.kept[layer] = (k[0], v[0])
        return shared_prefix_attention(None, q, k, v, None, scaling, self.layout)[0]


class DecodeCache:
    """Prompts' keys and values [S, h, P, D] (padded, masked by `bias`) and the rows' own [S * G, h, max_new, D]."""

    def __init__(self, prefill: Prefill, lengths: list[int], group: int, max_new_tokens: int) -> None:
        device = next(iter(prefill.kept.values()))[0].device
        ends = torch.tensor(lengths).cumsum(0)
        place = torch.arange(max(lengths))
        valid = place < torch.tensor(lengths)[:, None]  # [S, P]
        index = torch.where(valid, (ends - torch.tensor(lengths))[:, None] + place, 0).to(device)
        self.group, self.step, self.own_length = group, 0, max_new_tokens
        self.prompts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for layer, kv in prefill.kept.items():
            k, v = (x[:, index].transpose(0, 1).contiguous() for x in kv)  # [h, T, D] -> [S, h, P, D]
            self.prompts[layer] = (k, v)
            self.bias = torch.where(valid, 0.0, float("-inf")).to(k)[:, None, None]
        prefill.kept.clear()

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float) -> torch.Tensor:
        """q [S*G, H, 1, D], k and v [S*G, h, 1, D] -> [S*G, 1, H, D]; one softmax over prompt and own tokens."""
        keys, values = self._append(layer, k, v)
        prefix_keys, prefix_values = self.prompts[layer]
        (num, heads, length, dim), group = prefix_keys.shape, self.group
        share = q.shape[1] // heads  # query heads per key/value head

        def fold(x: torch.Tensor) -> torch.Tensor:  # [S*G, h, share, X] -> [S, h, G*share, X]
            return x.view(num, group, heads, share, -1).transpose(1, 2).reshape(num, heads, group * share, -1)

        def unfold(x: torch.Tensor) -> torch.Tensor:
            return x.view(num, heads, group, share, -1).transpose(1, 2).reshape(num * group, heads, share, -1)

        query = q.reshape(num * group, heads, share, dim) * scaling
        scores = torch.cat([fold(query) @ prefix_keys.mT + self.bias, fold(query @ keys.mT)], dim=-1)
        weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
        out = unfold(weights[..., :length] @ prefix_values) + unfold(weights[..., length:]) @ values
        return out.reshape(num * group, 1, heads * share, dim)

    def _append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if layer not in self.own:
            shape = (k.shape[0], k.shape[1], self.own_length, k.shape[3])
            self.own[layer] = (k.new_empty(shape), v.new_empty(shape))
        keys, values = self.own[layer]
        keys[:, :, self.step : self.step + 1] = k
        values[:, :, self.step : self.step + 1] = v
        return keys[:, :, : self.step + 1], values[:, :, : self.step + 1]
