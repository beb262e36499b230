"""The page's pictures: curves with the band of their seeds, choices, scaling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from torch import Tensor

from benchmarks.record import Row
from flexsparse import VideoTiling
from train.demo.pictures import COLOURS, QUERY, blank_figure, busiest_tile, save, tile_of_pixel

ROWS = 8
CHOSEN = "tab:cyan"
NONE = "Not run yet."
NAMES = {"dense": "dense", "vsa": "VSA", "bsa": "BSA"}


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


def draw_curves(path: Path, curves: Mapping[str, Sequence[tuple[int, float]]], xlabel: str) -> None:
    """Validation losses by step, a line for each name."""
    figure = blank_figure(8, 4.6)
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(*zip(*curve), marker="o", markersize=3.5, linewidth=1.8, label=name)
    axes.set(xlabel=xlabel, ylabel="validation loss")
    axes.legend(frameon=False)
    _plain(axes)
    save(figure, path)


def draw_scaling(
    path: Path,
    points: Mapping[str, Sequence[tuple[float, float]]],
    fits: Mapping[str, tuple[float, float]],
    title: str,
) -> None:
    """Loss against training FLOPs, both logarithmic: curves of all sizes as dots, and the fits.

    Args:
        points: (FLOPs, loss) of a method, of all sizes and points of their curves.
        fits: (a, b) of a method, loss = exp(a) * FLOPs ** b.
    """
    figure = blank_figure(7.5, 5)
    axes = figure.subplots()
    for (name, of_method), colour in zip(points.items(), COLOURS, strict=True):
        flops, losses = np.array(of_method).T
        axes.loglog(flops, losses, ".", color=colour, alpha=0.45, markersize=5)
        a, b = fits[name]
        span = np.geomspace(flops.min(), flops.max(), 50)
        label = NAMES[name] if np.isnan(b) else f"{NAMES[name]}: FLOPs^{b:.3f}"
        axes.loglog(span, np.exp(a) * span**b, color=colour, linewidth=2, label=label)
    axes.set(xlabel="training FLOPs", ylabel="validation loss")
    axes.set_title(title, loc="left")
    axes.legend(frameon=False)
    _plain(axes)
    save(figure, path)


def draw_choices(
    path: Path, clip: np.ndarray, tiling: VideoTiling, maps: Mapping[float, Sequence[Tensor]]
) -> None:
    """What the busiest tile of a clip attends to: a row for each head, a column for each noise.

    A panel has the slices of tiles in time side by side, each by its middle frame; chosen tiles are
    tinted, the others dark. Of more than ROWS heads in all layers, ROWS of them, evenly.

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
    figure = blank_figure(1.5 * wide * len(maps) + 0.4, 1.7 * len(shown) + 0.6)
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
                axes.set_title(f"noise {time:g}", loc="left")
            if column == 0:
                axes.set_ylabel(f"layer {layer + 1}, head {head + 1}")
    save(figure, path)


def _bright(clip: np.ndarray) -> np.ndarray:
    """A clip in [0, 1] with all of the contrast that it has: films may be dark."""
    low, high = np.percentile(clip, (1, 99))
    return np.clip((clip - low) / max(1.0, high - low), 0, 1) ** 0.6


def _lit(frame: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """A frame with a tint where tiles were chosen, dark elsewhere."""
    tint = np.array(to_rgb(CHOSEN))
    return np.where(chosen[..., None] > 0, 0.65 * frame + 0.35 * tint, 0.35 * frame)


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def shown(image: Path) -> str:
    """A picture, in Markdown of a page in docs/."""
    return f"![{image.stem.replace('-', ' ')}](images/{image.name})"
