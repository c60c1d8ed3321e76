"""A model whose large modules lie in host memory, and on the device only while they compute."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from univg_fast.model import ImageFeatures, PackedModel
from univg_fast.model.packed import Head
from univg_fast.packing import Row

ALIGN = 128  # elements: a weight begins where a kernel may expect it to


@dataclass
class Unit:
    """One module's weights, in one piece of host memory (page-locked, for a GPU)."""

    parameters: list[nn.Parameter]
    host: Tensor  # flat

    def views(self, flat: Tensor) -> list[Tensor]:
        """Each weight's part of a copy of `host`."""
        found, at = [], 0
        for parameter in self.parameters:
            found.append(flat[at : at + parameter.numel()].view(parameter.shape))
            at += padded(parameter)
        return found

    def point_to(self, flat: Tensor) -> None:
        for parameter, view in zip(self.parameters, self.views(flat), strict=True):
            parameter.data = view


class StreamedWeights:
    """Layers, the vocabulary and a tower of its own stay in host memory; the small rest lies on the device.

    When a module begins its weights are there, and those of the next one are copied on a stream of their own: at most
    two are on the device. Each row's pass reads all of them once. For inference only.
    """

    def __init__(self, model: PackedModel, device: torch.device, tower: bool) -> None:
        """`tower`: whether the model's vision tower is its own, and streamed, too."""
        self.model, self.device = model, device
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None
        inner = model.model.model
        blocks = list(inner.visual.blocks) if tower else []
        modules = [model.model.get_input_embeddings(), *blocks, *inner.language_model.layers, model.model.lm_head]
        units: dict[tuple[int, ...], Unit] = {}  # tied weights lie in host memory once
        for module in modules:
            key = tuple(map(id, module.parameters()))
            units[key] = units.get(key) or make_unit(module, device)
        self.units = [units[tuple(map(id, module.parameters()))] for module in modules]
        self.number = {module: i for i, module in enumerate(modules)}
        self.fetched: dict[int, tuple[Tensor, Any]] = {}  # by unit: its copy, and when that is complete
        streamed = {id(p) for unit in self.units for p in unit.parameters}
        for tensor in (*(p for p in model.parameters() if id(p) not in streamed), *model.buffers()):
            tensor.data = tensor.data.to(device)
        for module in modules:
            module.register_forward_pre_hook(lambda module, _: self._enter(module))
            module.register_forward_hook(lambda module, *_: self._leave(module))

    @property
    def host_bytes(self) -> int:
        return sum({id(unit): unit.host.numel() * unit.host.element_size() for unit in self.units}.values())

    def forward(self, row: Row, head: Head, features: ImageFeatures | None = None) -> Any:
        """What `PackedModel.forward` gives."""
        hidden, vocabulary = self.model.hidden(row, features), self.model.model.lm_head
        self._enter(vocabulary)
        try:
            return head(hidden, vocabulary.weight)
        finally:
            self._leave(vocabulary)

    @contextmanager
    def session(self) -> Iterator[None]:
        """Rows are passed inside of it: after it nothing is left on the device."""
        try:
            yield
        finally:
            self.fetched.clear()

    def _enter(self, module: nn.Module) -> None:
        number = self.number[module]
        self.fetched = {i: copy for i, copy in self.fetched.items() if i == number}
        if number not in self.fetched:
            self._fetch(number)
        flat, ready = self.fetched.pop(number)
        if self.side is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(ready)
            flat.record_stream(current)  # its memory is not given away before this stream has read it
        self.units[number].point_to(flat)
        self._fetch((number + 1) % len(self.units))

    def _leave(self, module: nn.Module) -> None:
        unit = self.units[self.number[module]]
        unit.point_to(unit.host)

    def _fetch(self, number: int) -> None:
        host = self.units[number].host
        if self.side is None:
            self.fetched[number] = (host.to(self.device, copy=True), None)
            return
        with torch.cuda.stream(self.side):
            flat = host.to(self.device, non_blocking=True)
            self.fetched[number] = (flat, self.side.record_event())


def make_unit(module: nn.Module, device: torch.device) -> Unit:
    """The module's weights, moved into one piece of host memory."""
    parameters = list(module.parameters())
    flat = torch.empty(sum(map(padded, parameters)), dtype=parameters[0].dtype)
    unit = Unit(parameters, flat.pin_memory() if device.type == "cuda" else flat)
    for parameter, view in zip(parameters, unit.views(unit.host), strict=True):
        view.copy_(parameter.data)
    unit.point_to(unit.host)
    return unit


def padded(parameter: nn.Parameter) -> int:
    return math.ceil(parameter.numel() / ALIGN) * ALIGN
