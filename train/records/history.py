"""What a run has measured, for Python code to read; and the reading of it off the device."""

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from train.distributed.ranks import DataRanks


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step: loss over the global batch, norm of the gradient before clipping."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    seconds: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    @property
    def what_is_not_finite(self) -> str:
        if math.isfinite(self.loss):
            return f"the norm of its gradient is {self.grad_norm}"
        return f"its loss is {self.loss}"


@dataclass
class History:
    """What `Trainer.train` has seen since the trainer was built.

    `seconds` of a step is its share of the time since steps were last read, without validation and
    checkpoints: with `metrics.log_freq` 1, its own.
    """

    steps: list[StepRecord] = field(default_factory=list)
    skipped: list[StepRecord] = field(default_factory=list)
    """Those that changed no weights, their loss or gradient being non-finite; not among `steps`."""
    validation: list[tuple[int, float]] = field(default_factory=list)
    """(step, loss)"""
    peak_memory: int = 0
    """Bytes: allocated on the GPU, or resident for the whole process on a CPU."""


class Unread:
    """Losses and norms still on the device: reading makes the host wait, so many at once."""

    def __init__(self, history: History, ranks: DataRanks) -> None:
        self.history, self.ranks = history, ranks
        self._steps: list[tuple[int, float, Tensor, Tensor]] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """What was done until now is no part of a step."""
        self._clock = time.perf_counter()

    def add(self, step: int, lr: float, loss: Tensor, grad_norm: Tensor) -> None:
        """loss: this rank's share of the global batch's mean; grad_norm: the same on all ranks."""
        self._steps.append((step, lr, loss, grad_norm))

    def read(self) -> list[StepRecord]:
        """Move all to the history, and return them: a collective."""
        steps, lrs, losses, norms = zip(*self._steps, strict=True)
        losses = self.ranks.total(torch.stack(losses)).tolist()
        norms = torch.stack(norms).tolist()
        seconds = (time.perf_counter() - self._clock) / len(steps)
        rows = zip(steps, losses, norms, lrs, strict=True)
        records = [StepRecord(*row, seconds) for row in rows]
        for record in records:
            (self.history.steps if record.finite else self.history.skipped).append(record)
        self._steps.clear()
        self.restart_clock()
        return records
