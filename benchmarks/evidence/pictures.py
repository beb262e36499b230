"""The page's pictures: curves with the band of their seeds, choices, scaling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from benchmarks.record import Row
from flexsparse import VideoTiling
from train.demo.pictures import COLOURS, QUERY, blank_figure, busiest_tile, save, tile_of_pixel

ROWS = 8
CHOSEN = "tab:cyan"
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


def draw_choices(
    path: Path, clip: np.ndarray, tiling: VideoTiling, maps: Mapping[float, Sequence[Tensor]]
) -> None:
    """What the busiest tile of a clip attends to: a row for each head, a column for each noise.

    A panel has the slices of tiles in time side by side, each by its middle frame; chosen tiles are
    tinted, the others darker. Of more than ROWS heads in all layers, ROWS of them, evenly.

    Args:
        clip: uint8 [T, H, W, 3].
        maps: by noise level, layer by layer, who attends to whom: bool [H, n, n].
    """
    frames, height, width = clip.shape[:3]
    grid = tiling.grid
    t, y, x = (p // v * s for p, v, s in zip(clip.shape, tiling.video, tiling.tile, strict=False))
    index = tile_of_pixel((frames, height, width), grid, (t, y, x))
    query = busiest_tile(clip, index)
    when, down, right = np.unravel_index(query, grid)
    heads = [
        (layer, head)
        for layer, tile_map in enumerate(next(iter(maps.values())))
        for head in range(len(tile_map))
    ]
    shown = [heads[i * len(heads) // min(ROWS, len(heads))] for i in range(min(ROWS, len(heads)))]
    wide, bright = grid[0] * width / height, _bright(clip)
    figure = blank_figure(0.75 * wide * len(maps) + 0.6, 0.82 * len(shown) + 0.9)
    panels = figure.subplots(len(shown), len(maps), squeeze=False)
    for column, (time, of_layers) in enumerate(maps.items()):
        for row, (layer, head) in enumerate(shown):
            axes = panels[row][column]
            chosen = of_layers[layer][head, query].float().numpy()
            middles = [min(i * t + t // 2, frames - 1) for i in range(grid[0])]
            lit = [_lit(bright[i], chosen[index[i]]) for i in middles]
            axes.imshow(np.concatenate(lit, axis=1), interpolation="nearest")
            corner = (when * width + right * x - 0.5, down * y - 0.5)
            box = {"edgecolor": QUERY, "facecolor": "none", "linewidth": 2}
            axes.add_patch(Rectangle(corner, x, y, **box))
            for cut in range(1, grid[0]):
                axes.axvline(cut * width - 0.5, color="white", linewidth=1.5)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(f"noise {time:g}", loc="left", fontsize=15)
            if column == 0:
                axes.set_ylabel(f"layer {layer + 1}\nhead {head + 1}", fontsize=13)
    handles = [
        Patch(facecolor="none", edgecolor=QUERY, linewidth=3, label="the tile that looks"),
        Patch(facecolor=CHOSEN, alpha=0.6, label="tiles that it looks at"),
        Patch(facecolor="#3a3a3a", label="tiles that it leaves out"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=15)
    save(figure, path)


def _bright(clip: np.ndarray) -> np.ndarray:
    """A clip in [0, 1] with all of the contrast that it has: films may be dark."""
    low, high = np.percentile(clip, (1, 99))
    return np.clip((clip - low) / max(1.0, high - low), 0, 1) ** 0.6


def _lit(frame: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """A frame with a tint where tiles were chosen, dark elsewhere."""
    tint = np.array(to_rgb(CHOSEN))
    return np.where(chosen[..., None] > 0, 0.6 * frame + 0.4 * tint, 0.45 * frame)


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def named(name: str) -> str:
    """A run's name as the page writes it: its method is the first word."""
    method, *rest = name.split(" ")
    return " ".join([NAMES.get(method, method), *rest])


def shown(image: Path) -> str:
    """A picture, in Markdown of a page in docs/."""
    return f"![{image.stem.replace('-', ' ')}](images/{image.name})"
