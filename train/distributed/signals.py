"""SIGTERM and Ctrl-C as a question that training asks between two steps."""

import signal
import threading
import time
from types import FrameType
from typing import Self

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# torchrun hands Ctrl-C on to processes that the terminal has told already: one wish, two signals.
ECHO_SECONDS = 2.0


class StopSignal:
    """While entered, SIGTERM or Ctrl-C only sets a mark; a second Ctrl-C interrupts at once.

    Data loading processes that are forked meanwhile inherit the handlers, so that Ctrl-C does not
    end them while their batches are still needed.
    """

    def __init__(self) -> None:
        self.received = 0
        self._when = 0.0
        self._before = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._when = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._when > ECHO_SECONDS:
            raise KeyboardInterrupt

    def agreed(self) -> str | None:
        """Name of the signal that any rank has received, the same on all of them: a collective."""
        number = torch.tensor(self.received)
        if dist.get_world_size() > 1:
            dist.all_reduce(number, dist.ReduceOp.MAX)
        return signal.Signals(int(number)).name if number else None
