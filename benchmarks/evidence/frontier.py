"""IsoFLOP: the least loss that any size reaches with so many training FLOPs, and its power law."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.record import Row

Curve = Sequence[tuple[float, float]]


def curve_of(row: Row) -> Curve:
    """(training FLOPs, validation loss) of a run, from its first validation after training on."""
    step_flops = row["attention_flops"] + row["other_flops"]
    return [(step * step_flops, loss) for step, loss in row["validation"] if step]


def frontier(curves: Sequence[Curve], budgets: Sequence[float]) -> Curve:
    """(budget, least loss) where some curve has it; between its points a curve is straight in the
    logarithms of both. A curve says nothing of budgets before its first point or after its last.
    """
    best: list[tuple[float, float]] = []
    for budget in budgets:
        reached = [loss_at(curve, budget) for curve in curves]
        losses = [loss for loss in reached if loss is not None]
        if losses:
            best.append((budget, min(losses)))
    return best


def envelope(curves: Sequence[Curve]) -> Curve:
    """The measured points, of all curves, below all that took as many FLOPs or fewer."""
    least: list[tuple[float, float]] = []
    for flops, loss in sorted(point for curve in curves for point in curve):
        if not least or loss < least[-1][1]:
            least.append((flops, loss))
    return least


def loss_at(curve: Curve, budget: float) -> float | None:
    """Its loss after so many FLOPs; None outside of it."""
    flops, losses = np.log(np.array(curve)).T
    x = np.log(budget)
    if not flops[0] <= x <= flops[-1] + 1e-12:
        return None
    return float(np.exp(np.interp(x, flops, losses)))


def power_law(points: Curve) -> tuple[float, float]:
    """(a, b) of loss = exp(a) * FLOPs ** b, least squares of the logarithms; NaN below 2 points."""
    if len(points) < 2:
        return math.nan, math.nan
    flops, losses = np.log(np.array(points)).T
    b, a = np.polyfit(flops, losses, 1)
    return float(a), float(b)


def flops_to(curve: Curve, loss: float) -> float | None:
    """FLOPs at which a curve, straight between its points as `frontier` has them, is first as low;
    None where it never is, or was from its first point on."""
    flops, losses = np.log(np.array(curve)).T
    x = np.log(loss)
    below = np.flatnonzero(losses <= x)
    if not len(below) or x > losses[0]:
        return None
    near = slice(max(0, below[0] - 1), below[0] + 1)
    return float(np.exp(np.interp(-x, -losses[near], flops[near])))


def saving(dense: Curve, sparse: Curve) -> tuple[float, float, float]:
    """How many times fewer FLOPs sparse attention takes for the same loss.

    Least, geometric mean and most over the losses of the dense frontier that the sparse frontier
    reaches too; NaN where there is none. A loss counts where it is reached first, on both: after
    the last point of the best size a frontier rises to that of the next, which is no cost of dense
    attention.

    Read off the frontiers themselves, not off the fits, which would carry it beyond what was
    measured.
    """
    ratios = []
    for budget, loss in envelope([dense]):
        flops = flops_to(sparse, loss)
        if flops is not None:
            ratios.append(math.log(budget / flops))
    if not ratios:
        return math.nan, math.nan, math.nan
    least, middle, most = np.exp([min(ratios), np.mean(ratios), max(ratios)]).tolist()
    return least, middle, most
