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

    Two buffers on the device take turns: while a module computes with one, the next module's weights are copied into
    the other on a stream of their own. The host waits for neither, however far it runs ahead, and no third one is
    ever made. Each row's pass reads all weights once. For inference only.
    """

    def __init__(self, model: PackedModel, device: torch.device, tower: bool) -> None:
        """`tower`: whether the model's vision tower is its own, and streamed, too."""
        self.model, self.device = model, device
        self.backend: Any = torch.get_device_module(device)  # a CPU's streams and events do nothing
        self.side = self.backend.Stream()
        self.buffers: list[Tensor] = []
        self.free: list[Any] = []  # of each buffer: the event after which nothing reads it
        self.now = 0  # the buffer of the module that computes, or did last
        self.ahead: tuple[int, Any] = -1, None  # in the other one: which unit, and the event after which it is there
        inner = model.model.model
        blocks = list(inner.visual.blocks) if tower else []
        modules = [model.model.get_input_embeddings(), *blocks, *inner.language_model.layers, model.model.lm_head]
        units: dict[tuple[int, ...], Unit] = {}  # tied weights lie in host memory once
        for module in modules:
            key = tuple(map(id, module.parameters()))
            units[key] = units.get(key) or make_unit(module, device)
        self.units = [units[tuple(map(id, module.parameters()))] for module in modules]
        self.number = {module: i for i, module in enumerate(modules)}
        streamed = {id(p) for unit in self.units for p in unit.parameters}
        for tensor in (*(p for p in model.parameters() if id(p) not in streamed), *model.buffers()):
            tensor.data = tensor.data.to(device)
        for module in modules:
            module.register_forward_pre_hook(lambda module, _: self._enter(module))
            module.register_forward_hook(lambda module, *_: self._leave(module))

    @property
    def host_bytes(self) -> int:
        sizes = {id(unit): unit.host.numel() * unit.host.element_size() for unit in self.units}.values()
        return sum(sizes) if self.device.type == "cpu" else sum(map(page_locked, sizes))

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
        largest = max((unit.host for unit in self.units), key=torch.numel)
        self.buffers = [torch.empty_like(largest, device=self.device) for _ in range(2)]
        self.free = [self._stream().record_event()] * 2
        self.ahead = -1, None
        try:
            yield
        finally:
            self._stream().wait_stream(self.side)  # the last copy ends before its memory is another's
            self.buffers = []

    def _enter(self, module: nn.Module) -> None:
        number, here = self.number[module], 1 - self.now
        if self.ahead[0] != number:  # the first module, or one that comes after others which the row has no use for
            self._fetch(number, here)
        self._stream().wait_event(self.ahead[1])
        self.units[number].point_to(self.buffers[here])
        self.now = here
        self._fetch((number + 1) % len(self.units), 1 - here)

    def _leave(self, module: nn.Module) -> None:
        unit = self.units[self.number[module]]
        unit.point_to(unit.host)
        self.free[self.now] = self._stream().record_event()

    def _fetch(self, number: int, buffer: int) -> None:
        host = self.units[number].host
        with self.backend.stream(self.side):
            self.side.wait_event(self.free[buffer])
            self.buffers[buffer][: host.numel()].copy_(host, non_blocking=True)
            self.ahead = number, self.side.record_event()

    def _stream(self) -> Any:
        return self.backend.current_stream(self.device)


def make_unit(module: nn.Module, device: torch.device) -> Unit:
    """The module's weights, moved into one piece of host memory."""
    parameters = list(module.parameters())
    numbers, dtype = sum(map(padded, parameters)), parameters[0].dtype
    unit = Unit(parameters, torch.empty(numbers, dtype=dtype, pin_memory=device.type == "cuda"))
    for parameter, view in zip(parameters, unit.views(unit.host), strict=True):
        view.copy_(parameter.data)
    unit.point_to(unit.host)
    return unit


def page_locked(size: int) -> int:
    """Bytes of host memory that so many take: torch rounds each page-locked piece up to a power of two."""
    return 1 << (size - 1).bit_length()


def padded(parameter: nn.Parameter) -> int:
    return math.ceil(parameter.numel() / ALIGN) * ALIGN
