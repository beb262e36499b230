"""Steps with a non-finite loss or gradient: skipped where they happen, counted when they are read.

The norm of the gradient is the same on all ranks, and so is what follows from it: no rank asks
another. The optimizer and the average take the answer on the device; a host that waited for it
would leave a GPU idle in every step, for something that hardly ever happens.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from train.log import logger
from train.records.history import StepRecord


class NonFiniteError(FloatingPointError):
    """The loss or the norm of the gradient was NaN or infinite too many steps in a row."""


def backward(share: Tensor) -> None:
    """Gradients of a loss; NaN where it is non-finite, even if its gradient were not.

    So the norm of the gradient, in which all ranks have a part, tells of the loss of each.
    """
    share.backward(torch.where(share.detach().isfinite(), 1.0, torch.nan).to(share.dtype))


def step_if_finite(optimizers: Any, grad_norm: Tensor) -> Tensor:
    """The optimizers' step, unless the norm is non-finite; returns 0-dim fp32, 1 if it was skipped.

    Then weights and moments stay as they are, to the last bit. Fused optimizers leave the step out
    on the device, as they do under torch's GradScaler; for any other the norm is read.
    """
    skip = (~grad_norm.isfinite()).to(torch.float32)
    if all(group.get("fused") for optimizer in optimizers for group in optimizer.param_groups):
        for optimizer in optimizers:
            optimizer.found_inf = skip
        optimizers.step()
        for optimizer in optimizers:
            del optimizer.found_inf
    elif not skip:
        optimizers.step()
    return skip


@dataclass
class Skipped:
    """Counts the steps that were skipped.

    Attributes:
        most: so many in a row end the run.
        total: in the whole run.
        row: those in a row until now, of this start.
        before: how many those went on from, in the run that was resumed.
        fatal: how many in a row were too many, and those of this start.
    """

    most: int
    total: int = 0
    row: list[StepRecord] = field(default_factory=list)
    before: int = 0
    fatal: tuple[int, list[StepRecord]] | None = None

    @property
    def in_a_row(self) -> int:
        return self.before + len(self.row)

    @property
    def too_many(self) -> bool:
        return self.fatal is not None

    def see(self, records: Iterable[StepRecord]) -> None:
        """Count these, in their order; too many in a row stay so, whatever came after them."""
        for record in records:
            if record.finite:
                self.row, self.before = [], 0
                continue
            self.row.append(record)
            self.total += 1
            logger.warning(
                f"step {record.step} skipped: {record.what_is_not_finite}; weights, moments and "
                f"average stay as they were ({self.in_a_row} in a row, {self.total} in all)"
            )
            if self.in_a_row >= self.most:
                self.fatal = self.in_a_row, list(self.row)

    def error(self, saved: str) -> NonFiniteError:
        assert self.fatal is not None
        count, row = self.fatal
        steps = ", ".join(f"{record.step} ({record.what_is_not_finite})" for record in row)
        return NonFiniteError(
            f"{count} steps in a row skipped, which training.max_skipped allows no more "
            f"of: {steps}; {saved}: look at the data there, or lower the learning rate or "
            "training.max_norm in a run that starts from an earlier checkpoint "
            "(--checkpoint.initial-load-path)"
        )

    def state_dict(self) -> dict[str, int]:
        """Too many in a row are forgotten: who starts again wants to try what comes after them."""
        forgotten = self.in_a_row >= self.most
        return {"total": self.total, "in_a_row": 0 if forgotten else self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.total, self.before, self.row = state["total"], state["in_a_row"], []
        self.fatal = None
