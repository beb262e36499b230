"""Runs' losses as a picture, by step and by training FLOPs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from train.compare.runs import Run

TITLE = "python -m train.compare"  # in each picture
SMOOTHED = 0.05  # share of a run that a point of its thick line is the mean of


def draw(path: Path, runs: Sequence[Run]) -> None:
    """A PNG: the loss by step and, if all runs tell, by training FLOPs; squares are held out."""
    known = all(run.curves["train/flops_per_clip"] for run in runs)
    figure = Figure(figsize=(11 if known else 6.5, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.atleast_1d(figure.subplots(1, 2 if known else 1, sharey=True))
    for i, run in enumerate(runs):
        steps, losses = map(list, zip(*run.loss, strict=True))
        held_out = run.curves["validation/loss"]
        _draw(panels[0], i, run.name, steps, losses, [s for s, _ in held_out], held_out)
        if known:
            places = run.flops(steps), run.flops([s for s, _ in held_out])
            _draw(panels[1], i, run.name, places[0], losses, places[1], held_out)
    panels[0].set(xlabel="training steps", ylabel="loss (lower is better)")
    if known:
        panels[1].set(xlabel="training FLOPs")
    for axes in panels:
        axes.set(xlim=(0, None))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(title="squares: held-out clips; faint: as logged", frameon=False)
    figure.savefig(path, metadata={"Title": TITLE})


def is_drawn(path: Path) -> bool:
    """Whether a file is a picture that `draw` made."""
    try:
        with Image.open(path) as image:
            return image.info.get("Title") == TITLE
    except OSError:
        return False


def _draw(
    axes: Axes,
    number: int,
    name: str,
    places: Sequence[float],
    losses: Sequence[float],
    held_out_places: Sequence[float],
    held_out: Sequence[tuple[int, float]],
) -> None:
    colour = f"C{number % 10}"
    axes.plot(places, losses, color=colour, alpha=0.22, linewidth=1)
    width = max(1, round(SMOOTHED * len(losses)))
    mean = np.convolve(losses, np.ones(width) / width, "valid")
    axes.plot(places[width - 1 :], mean, color=colour, linewidth=2, label=name)
    points = [loss for _, loss in held_out]
    axes.plot(held_out_places, points, color=colour, linestyle="none", marker="s", markersize=4)
