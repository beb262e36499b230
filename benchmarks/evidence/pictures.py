"""The page's pictures of losses: curves with the band of their seeds, ablations, scaling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from benchmarks.record import Row
from train.demo.pictures import COLOURS, blank_figure, save

NONE = "Not run yet."
NAMES = {"dense": "dense", "vsa": "VSA", "bsa": "BSA"}
Curve = Sequence[tuple[int, float]]


def draw_parity(path: Path, rows: Sequence[Row], data: str) -> None:
    """Validation loss of each method, by step and by training FLOPs: mean and band of the seeds."""
    figure = blank_figure(11, 4.4)
    by_step, by_flops = figure.subplots(1, 2, sharey=True)
    seeds = len({row["seed"] for row in rows})
    for (name, title), colour in zip(NAMES.items(), COLOURS, strict=True):
        mine = [row for row in rows if row["name"] == name]
        steps = np.array([step for step, _ in mine[0]["validation"]])[1:]
        losses = np.array([[loss for _, loss in row["validation"]][1:] for row in mine])
        flops = steps * (mine[0]["attention_flops"] + mine[0]["other_flops"])
        for axes, x in ((by_step, steps), (by_flops, flops)):
            axes.fill_between(x, losses.min(0), losses.max(0), color=colour, alpha=0.2, linewidth=0)
            axes.plot(x, losses.mean(0), color=colour, linewidth=2, label=title)
    by_step.set(xlabel="training steps", ylabel=f"validation loss, {data}")
    by_flops.set(xlabel="training FLOPs")
    by_step.set_title("At equal steps", loc="left")
    by_flops.set_title("At equal FLOPs", loc="left")
    by_step.legend(title=f"mean and range of {seeds} seeds", frameon=False)
    for axes in (by_step, by_flops):
        _plain(axes)
    save(figure, path)


def draw_flops(path: Path, counts: Mapping[str, Curve], paper: Curve) -> None:
    """(tokens, FLOPs of a layer's attention) by method as lines, a paper's counts as crosses."""
    figure = blank_figure(7.5, 4.6)
    axes = figure.subplots()
    for (name, title), colour in zip(NAMES.items(), COLOURS, strict=True):
        axes.plot(*zip(*counts[name]), color=colour, marker="o", linewidth=2, label=title)
    axes.plot(*zip(*paper), "x", color="black", label="BSA's paper, dense and BSA")
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="FLOPs of attention, a layer")
    ticks = [tokens for tokens, _ in counts["dense"]]
    axes.set_xticks(ticks, [f"{tokens / 1000:.0f}k" for tokens in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False)
    _plain(axes)
    save(figure, path)


def draw_adaptation(
    path: Path, before: Curve, after: Mapping[str, Curve], switch: int, data: str
) -> None:
    """Validation loss of the dense run and of those that go on from it, and how far from dense.

    Args:
        before: (step, loss) of the dense run.
        after: by name, the method first, (steps since the switch, loss); one is "dense on".
        switch: the step after which they go on.
    """
    figure = blank_figure(11, 4.6)
    whole, apart = figure.subplots(1, 2)
    colours = dict(zip(NAMES, COLOURS, strict=True))
    marks: dict[str, Any] = dict(marker="o", markersize=3.5, linewidth=1.8)
    whole.plot(*zip(*before), color=colours["dense"], alpha=0.5, label="dense, before", **marks)
    dense = dict(after["dense on"])
    for name, curve in after.items():
        style = "--" if name.endswith("at once") else "-"
        told = dict(color=colours[name.split()[0]], linestyle=style, label=named(name), **marks)
        steps, losses = zip(*curve)
        whole.plot([switch + step for step in steps], losses, **told)
        apart.plot(steps, [100 * (loss / dense[step] - 1) for step, loss in curve], **told)
    whole.set(xlabel="training steps", ylabel=f"validation loss, {data}")
    whole.set_title("From the dense run's start", loc="left")
    apart.set(xlabel="training steps since the switch", ylabel="against dense on, %")
    apart.set_title("After the switch", loc="left")
    whole.legend(frameon=False)
    for axes in (whole, apart):
        _plain(axes)
    save(figure, path)


def draw_ablations(
    path: Path, groups: Mapping[str, Mapping[str, float]], chance: float, data: str
) -> None:
    """Each variant's loss against dense attention's, group by group.

    Args:
        groups: by name, the method first: percent more than dense attention's.
        chance: percent that methods of a seed are apart at most in loss parity.
    """
    names = [name for variants in groups.values() for name in variants]
    figure = blank_figure(8, 0.22 * (len(names) + len(groups)) + 0.8)
    axes, place, places = figure.subplots(), 0.0, []
    colours = dict(zip(NAMES, COLOURS, strict=True))
    axes.axvspan(-chance, chance, color="grey", alpha=0.15, linewidth=0)
    for variants in groups.values():
        for name, apart in variants.items():
            axes.plot(apart, place, "o", color=colours.get(name.split()[0], "grey"))
            places.append(place)
            place += 1
        place += 0.7
    axes.set_yticks(places, [named(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel(
        f"validation loss, {data}, against dense, % (grey: as methods of a seed differ in parity)"
    )
    _plain(axes)
    save(figure, path)


def draw_scaling(
    path: Path,
    curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]],
    best: Mapping[str, Sequence[tuple[float, float]]],
    fits: Mapping[str, tuple[float, float]],
    title: str,
) -> None:
    """Loss against training FLOPs, both logarithmic: a thin curve for each size, and the fits.

    Args:
        curves: of a method, for each size (FLOPs, loss).
        best: of a method, the points that its fit is of.
        fits: (a, b) of a method, loss = exp(a) * FLOPs ** b.
    """
    figure = blank_figure(7.5, 5)
    axes = figure.subplots()
    for (name, of_sizes), colour in zip(curves.items(), COLOURS, strict=True):
        for curve in of_sizes:
            axes.loglog(*zip(*curve), ".-", color=colour, alpha=0.4, markersize=5, linewidth=0.8)
        a, b = fits[name]
        span = np.geomspace(best[name][0][0], best[name][-1][0], 50)
        label = NAMES[name] if np.isnan(b) else f"{NAMES[name]}: FLOPs^{b:.3f}"
        axes.loglog(span, np.exp(a) * span**b, color=colour, linewidth=2, label=label)
    axes.set(xlabel="training FLOPs", ylabel="validation loss")
    axes.set_title(title, loc="left")
    for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatter("{x:.2g}")  # a loss of 0.4 is no 4 x 10^-1
    axes.legend(title="thin: each size; thick: the fit of the best", frameon=False)
    _plain(axes)
    save(figure, path)


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def named(name: str) -> str:
    """A run's name as the page writes it: its method is the first word."""
    method = name.split(" ")[0].removesuffix(",")
    return NAMES.get(method, method) + name[len(method) :]


def shown(image: Path) -> str:
    """A picture, in Markdown of a page in docs/."""
    return f"![{image.stem.replace('-', ' ')}](images/{image.name})"
