"""Milliseconds and peak memory of a step, on a GPU or, in a rehearsal, on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.layers import Layer


class Measured(NamedTuple):
    """Median milliseconds of a step, and bytes that it takes beyond what was there before it."""

    ms: float
    peak_bytes: int | None


def steps(layer: Layer, grad: Tensor) -> dict[str, Callable[[], object]]:
    """The two things that are timed."""

    def forward() -> object:
        with torch.no_grad():
            return layer.attend(*layer.inputs)

    def forward_backward() -> object:
        return torch.autograd.grad(layer.attend(*layer.inputs), layer.inputs, grad)

    return {"forward": forward, "forward_backward": forward_backward}


def measure(step: Callable[[], object], device: torch.device, seconds: float) -> Measured:
    """Runs ``step`` for about ``seconds``, 3 to 50 times after some that are not timed.

    Inputs of a benchmarked layer are larger than a GPU's cache, so that it is not emptied between.
    """
    step()  # compiles
    peak = _peak(step) if device.type == "cuda" else None
    (once,) = _times(step, device, 1)
    times = _times(step, device, max(3, min(50, int(1e3 * seconds / once))))
    return Measured(statistics.median(times), peak)


def _peak(step: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _times(step: Callable[[], object], device: torch.device, count: int) -> list[float]:
    """Milliseconds of ``count`` steps, on a GPU queued behind a pause in which the CPU starts them
    all: what is timed is the GPU, not Python on the way to it."""
    if device.type != "cuda":
        ends = [time.perf_counter()]
        for _ in range(count):
            step()
            ends.append(time.perf_counter())
        return [1e3 * (b - a) for a, b in zip(ends, ends[1:])]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    begin = time.perf_counter()
    for _ in range(2):
        step()
    to_start = (time.perf_counter() - begin) / 2
    torch.cuda._sleep(int(2e9 * min(1.0, to_start * count)))  # cycles: 2e9 are about a second
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in zip(events, events[1:])]


def machine(device: torch.device, seconds: float = 0.3) -> dict[str, float]:
    """The two ceilings of a roofline: bf16 products in TFLOP/s, and copies in GB/s, of random data.

    A copy counts what it reads and what it writes.
    """
    size = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    product = measure(lambda: a @ b, device, seconds)
    source = torch.randn(size * size * 4, device=device)
    target = torch.empty_like(source)
    copy = measure(lambda: target.copy_(source), device, seconds)
    return {
        "matmul_tflops": round(2 * size**3 / product.ms / 1e9, 1),
        "copy_gbps": round(2 * source.nbytes / copy.ms / 1e6, 1),
    }
