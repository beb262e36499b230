"""Schedules of sparsity: how many key tiles a query tile admits at each step of training.

A schedule is a frozen value that is asked for the tiles at a step; it ends exactly at the target,
what the model's attention was configured with. Write your own likewise.
"""

from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    def tiles(self, step: int, n: int, target: float) -> float | None:
        """Tiles to admit at `step`, from 0 on, of `n`; None is dense attention.

        Whole numbers, but for the target, which may be a threshold's.
        """
        ...


@dataclass(frozen=True)
class Constant:
    """The target from the first step on."""

    def tiles(self, step: int, n: int, target: float) -> float | None:
        return target


@dataclass(frozen=True)
class DenseWarmup:
    """Dense attention for `steps`, then the target.

    >>> [DenseWarmup(steps=2).tiles(step, n=96, target=12) for step in range(4)]
    [None, None, 12, 12]
    """

    steps: int = 500

    def __post_init__(self) -> None:
        _check(self, 0, "steps")

    def tiles(self, step: int, n: int, target: float) -> float | None:
        return None if step < self.steps else target


@dataclass(frozen=True)
class FallingTiles:
    """VSA's adaptation of a dense model: dense steps, then `by` tiles fewer after every `every`.

    The paper (arXiv 2505.13389) has 50 dense steps, then 4 tiles fewer every 50 steps to 32.

    >>> [FallingTiles().tiles(step, n=40, target=32) for step in (49, 50, 99, 100, 150)]
    [None, 36, 36, 32, 32]
    """

    dense_steps: int = 50
    by: int = 4
    every: int = 50

    def __post_init__(self) -> None:
        _check(self, 0, "dense_steps")
        _check(self, 1, "by", "every")

    def tiles(self, step: int, n: int, target: float) -> float | None:
        if step < self.dense_steps:
            return None
        return max(target, n - self.by * (1 + (step - self.dense_steps) // self.every))


@dataclass(frozen=True)
class RisingSparsity:
    """BSA's annealing: the sparsity of the keys rises by `by` after every `every` steps.

    A secondary source has BSA (arXiv 2509.01085) rise by 0.03 every 30 steps to 0.9. The first
    `every` steps are dense; tiles are rounded to whole ones on the way.

    >>> [RisingSparsity().tiles(step, n=100, target=10) for step in (29, 30, 60, 870, 899, 900)]
    [None, 97, 94, 13, 13, 10]
    """

    by: float = 0.03
    every: int = 30

    def __post_init__(self) -> None:
        if not 0 < self.by <= 1:
            raise ValueError(f"{self}: by must be above 0 and at most 1, a share of the keys")
        _check(self, 1, "every")

    def tiles(self, step: int, n: int, target: float) -> float | None:
        turns = step // self.every
        return max(target, round(n * max(0.0, 1 - self.by * turns))) if turns else None


def _check(schedule: object, least: int, *names: str) -> None:
    for name in names:
        value = getattr(schedule, name)
        if type(value) is not int or value < least:
            raise ValueError(f"{schedule}: {name} must be an int of at least {least}")
