"""Milliseconds of Wan's forward and of the attention in it."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.wan.models import (
    Method,
    attention_inputs,
    compile_alone,
    compile_blocks,
    slots_of,
    with_slot,
)
from models.wan import WanModel


class Forward(NamedTuple):
    """One forward; ``peak_bytes`` beyond what was in memory before it, None on a CPU."""

    ms: float
    attention_ms: float
    peak_bytes: int | None


class Runner(NamedTuple):
    """A model with a method's attention, and what its forward is given.

    Attributes:
        inputs: of the first layer's slot.
        alone: that slot compiled by itself, since hooks cannot look into compiled blocks; None
            where the model is eager.
    """

    method: Method
    model: WanModel
    batch: list[Tensor]
    inputs: tuple
    alone: Callable[..., Tensor] | None

    @classmethod
    def of(cls, method: Method, model: WanModel, batch: list[Tensor], compiled: bool) -> Runner:
        """With the weights of ``model``."""
        model = with_slot(model, method.slot)
        inputs, alone = attention_inputs(model, batch), None
        if compiled:
            compile_blocks(model)
            alone = compile_alone(slots_of(model)[0])
        return cls(method, model, batch, inputs, alone)

    @property
    def slot(self) -> nn.Module:
        return slots_of(self.model)[0]

    @property
    def attend(self) -> Callable[..., Tensor]:
        """A layer's attention as it is timed."""
        return self.slot if self.alone is None else self.alone

    @torch.no_grad()
    def forward(self) -> Forward:
        """Timed once. Compiled, attention is the first layer's by itself, times the layers."""
        device = self.batch[0].device
        before = _reset_peak(device)
        with _marks(slots_of(self.model) if self.alone is None else [], device) as marks:
            ms = _ms(lambda: self.model(*self.batch), device)
        peak = torch.cuda.max_memory_allocated() - before if device.type == "cuda" else None
        attention = sum(_between(a, b) for a, b in zip(marks[::2], marks[1::2]))
        if self.alone is not None:
            alone = self.alone
            attention = len(self.model.layers) * _ms(lambda: alone(*self.inputs), device)
        return Forward(ms, attention, peak)


def in_turn(runners: list[Runner], rounds: int) -> dict[str, Forward]:
    """Medians of ``rounds`` forwards of each, one after the other in every round, after one that is
    not timed."""
    found: dict[str, list[Forward]] = {runner.method.name: [] for runner in runners}
    for number in range(rounds + 1):
        for runner in runners:
            forward = runner.forward()
            if number:
                found[runner.method.name].append(forward)
    return {
        name: Forward(
            statistics.median(forward.ms for forward in some),
            statistics.median(forward.attention_ms for forward in some),
            some[-1].peak_bytes,
        )
        for name, some in found.items()
    }


def fastest_sdpa(q: Tensor, k: Tensor, v: Tensor) -> tuple[str | None, AbstractContextManager]:
    """Within it, dense attention is by the engine of torch's that is fastest for these inputs on
    their GPU, and the others where that one can't; on a CPU there is no choice."""
    if not q.is_cuda:
        return None, nullcontext()
    times = {}
    for engine in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        try:
            with sdpa_kernel(engine), torch.no_grad():
                F.scaled_dot_product_attention(q, k, v)
                times[engine] = _ms(lambda: F.scaled_dot_product_attention(q, k, v), q.device)
        except RuntimeError:  # not for this GPU
            continue
    order = sorted(times, key=lambda engine: times[engine])
    order += [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return order[0].name, sdpa_kernel(order, set_priority=True)


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second of a matrix product."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2e3 * size**3 / min(_ms(lambda: a @ a, device) for _ in range(3))


@contextmanager
def _marks(slots: list[nn.Module], device: torch.device) -> Iterator[list[Any]]:
    """The moments at which the slots begin and end, in turn."""
    marks: list[Any] = []

    def mark(*_: Any) -> None:
        marks.append(_mark(device))

    handles = [s.register_forward_pre_hook(mark) for s in slots]
    handles += [s.register_forward_hook(mark) for s in slots]
    try:
        yield marks
    finally:
        for handle in handles:
            handle.remove()


def _ms(step: Callable[[], object], device: torch.device) -> float:
    start = _mark(device)
    step()
    return _between(start, _mark(device))


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(start: Any, end: Any) -> float:
    """Milliseconds."""
    if isinstance(start, float):
        return 1e3 * (end - start)
    end.synchronize()
    return start.elapsed_time(end)


def _reset_peak(device: torch.device) -> int:
    """Bytes that are in memory now."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()
