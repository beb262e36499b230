"""What a run has measured, for Python code to read; and the reading of it off the device."""

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from train.ranks import DataRanks


class NonFiniteError(FloatingPointError):
    """The loss or the norm of the gradient became NaN or infinite."""


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step: loss over the global batch, norm of the gradient before clipping."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    seconds: float


@dataclass
class History:
    """What `Trainer.train` has seen since the trainer was built.

    `seconds` of a step is its share of the time since steps were last read, without validation and
    checkpoints: with `metrics.log_freq` 1, its own.
    """

    steps: list[StepRecord] = field(default_factory=list)
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
        """Move all to the history: a collective. NonFiniteError names the first bad step."""
        steps, lrs, losses, norms = zip(*self._steps, strict=True)
        losses = self.ranks.total(torch.stack(losses)).tolist()
        norms = torch.stack(norms).tolist()
        seconds = (time.perf_counter() - self._clock) / len(steps)
        rows = zip(steps, losses, norms, lrs, strict=True)
        records = [StepRecord(*row, seconds) for row in rows]
        for record in records:
            self._check(record)
            self.history.steps.append(record)
        self._steps.clear()
        self.restart_clock()
        return records

    def _check(self, record: StepRecord) -> None:
        for name, value in (("loss", record.loss), ("norm of the gradient", record.grad_norm)):
            if not math.isfinite(value):
                past = self.history.steps
                before = (
                    f", and the loss was {past[-1].loss:.4g} at the step before" if past else ""
                )
                raise NonFiniteError(
                    f"the {name} is {value} at step {record.step}{before}: lower the learning rate "
                    f"or training.max_norm; nothing since the last checkpoint was saved"
                )
