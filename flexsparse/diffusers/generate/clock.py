"""Seconds for each part of a generation."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Clock:
    """Adds up seconds by part, in the order in which they begin; on a GPU each part waits for the
    device at its ends.

    >>> clock = Clock(torch.device("cpu"))
    >>> with clock.part("text"):
    ...     pass
    >>> clock.seconds["text"] < 1
    True
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def claim(self, *names: str) -> None:
        """Lines for these parts, in this order, after those that there are."""
        for name in names:
            self.seconds[name] += 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.claim(name)
        start = self._now()
        try:
            yield
        finally:
            self.seconds[name] += self._now() - start

    @contextmanager
    def inside(self, name: str, modules: list[nn.Module]) -> Iterator[None]:
        """Adds up the calls of these modules, which are not compiled and take hooks, without
        waiting for a GPU between them."""
        self.claim(name)
        spans: list[tuple[Any, Any]] = []
        begun: list[Any] = []

        def before(module: nn.Module, args: Any) -> None:
            begun.append(self._mark())

        def after(module: nn.Module, args: Any, out: Any) -> None:
            spans.append((begun.pop(), self._mark()))

        hooks = [m.register_forward_pre_hook(before) for m in modules]
        hooks += [m.register_forward_hook(after) for m in modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
                self.seconds[name] += sum(a.elapsed_time(b) for a, b in spans) / 1000
            else:
                self.seconds[name] += sum(b - a for a, b in spans)

    def lines(self) -> list[str]:
        """A table of parts, in their order."""
        width = max(map(len, self.seconds), default=0)
        return [f"{name:<{width}}  {value:9.2f} s" for name, value in self.seconds.items()]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
