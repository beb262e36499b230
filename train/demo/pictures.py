"""The demo's pictures: loss curves, and the tiles that one tile attends to, over the frames."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

COLOURS = ("#3c6eb4", "#e07b28", "#3a9a5b")  # dense, VSA, BSA
QUERY = "#ffe14d"
CHOSEN = "#e07b28"


@dataclass(frozen=True)
class Curve:
    """A run: the loss and the seconds of each step, and (step, loss) on held-out clips."""

    losses: Sequence[float]
    seconds: Sequence[float]
    held_out: Sequence[tuple[int, float]]


def draw_losses(path: Path, runs: Mapping[str, Curve]) -> None:
    """The runs' losses, by step and by training time, as a PNG."""
    figure = blank_figure(11, 4.4)
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    for (name, run), colour in zip(runs.items(), COLOURS, strict=True):
        clock = np.concatenate([[0.0], np.cumsum(run.seconds)])
        steps, losses = zip(*run.held_out, strict=True)
        for axes, times in ((by_step, np.arange(len(clock))), (by_time, clock)):
            axes.plot(times[1:], run.losses, color=colour, alpha=0.22, linewidth=1)
            style = {"color": colour, "linewidth": 2.2, "marker": "o", "markersize": 4}
            axes.plot(times[list(steps)], losses, label=name, **style)
    by_step.set(xlabel="training steps", ylabel="loss (lower is better)")
    by_step.set_title("What each step brings", loc="left")
    by_time.set(xlabel="seconds of training")
    by_time.set_title("What each second brings", loc="left")
    for axes in (by_step, by_time):
        axes.set(xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    by_step.legend(title="thick: held-out clips; faint: each training step", frameon=False)
    save(figure, path)


def draw_chosen_tiles(
    path: Path,
    clip: np.ndarray,
    grid: tuple[int, int, int],
    tile: tuple[int, int, int],
    query: int,
    chosen: Mapping[str, np.ndarray],
) -> None:
    """What one tile of a clip attends to, dense and with each sparse attention, as a PNG.

    A column is a slice of tiles in time, shown by its middle frame; what is attended to is bright.

    Args:
        clip: uint8 [T, H, W, 3].
        grid: tiles along (T, H, W).
        tile: pixels of a tile along (T, H, W).
        query: the tile that attends, an index into the grid in raster order.
        chosen: by the name of a sparse attention, the tiles it attends to: bool [tiles].
    """
    slices, n = grid[0], math.prod(grid)
    height, width = clip.shape[1:3]
    index = tile_of_pixel((len(clip), height, width), grid, tile)
    rows = {f"Dense attention: the yellow tile looks at all {n} tiles": np.ones(n, dtype=bool)}
    for name, tiles in chosen.items():
        rows[f"{name}: it looks at {int(tiles.sum())} tiles that it chose"] = tiles
    size = 3.4 * slices + 0.3, len(rows) * (3.4 * height / width + 0.42) + 0.65
    figure = blank_figure(*size)
    panels = figure.subplots(len(rows), slices, squeeze=False)
    when, y, x = np.unravel_index(query, grid)
    for row, (title, looked_at) in zip(panels, rows.items(), strict=True):
        for time, axes in enumerate(row):
            middle = min(time * tile[0] + tile[0] // 2, len(clip) - 1)
            lit = looked_at[index[middle]]
            axes.imshow(spotlight(clip[middle], lit), interpolation="nearest")
            _outline_tiles(axes, lit, tile)
        row[0].set_title(title, loc="left", fontsize=12.5)
        box = {"edgecolor": QUERY, "facecolor": "none", "linewidth": 3.5, "zorder": 3}
        corner = (x * tile[2] - 0.5, y * tile[1] - 0.5)
        row[when].add_patch(Rectangle(corner, tile[2], tile[1], **box))
    for time, axes in enumerate(panels[-1]):
        first, last = time * tile[0] + 1, min((time + 1) * tile[0], len(clip))
        axes.set_xlabel(f"frames {first} to {last}", fontsize=11)
    handles = [
        Patch(facecolor="none", edgecolor=QUERY, linewidth=3, label="the tile that looks"),
        Patch(facecolor="none", edgecolor=CHOSEN, linewidth=2, label="tiles it looks at (bright)"),
        Patch(facecolor="#3a3a3a", label="tiles it ignores (dark)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=11)
    save(figure, path)


def tile_of_pixel(
    shape: tuple[int, int, int], grid: tuple[int, int, int], tile: tuple[int, int, int]
) -> np.ndarray:
    """Index of the tile, in raster order of the grid, that each pixel lies in: int [T, H, W]."""
    t, y, x = (np.arange(size) // of for size, of in zip(shape, tile, strict=True))
    return (t[:, None, None] * grid[1] + y[:, None]) * grid[2] + x


def busiest_tile(clip: np.ndarray, index: np.ndarray) -> int:
    """The tile in which a clip, uint8 [T, H, W, 3], changes most; `index` as of tile_of_pixel."""
    motion = np.zeros(clip.shape[:3])
    motion[1:] = np.abs(np.diff(clip.astype(np.int16), axis=0)).mean(-1)
    return int(np.argmax(np.bincount(index.ravel(), motion.ravel())))


def spotlight(frame: np.ndarray, lit: np.ndarray) -> np.ndarray:
    """The frame [H, W, 3] as it is where `lit` [H, W], and dark grey elsewhere."""
    grey = frame.mean(-1, keepdims=True) * 0.28 + 12
    return np.where(lit[..., None], frame, grey).astype(np.uint8)


def _outline_tiles(axes: Axes, lit: np.ndarray, tile: tuple[int, int, int]) -> None:
    height, width = lit.shape
    for y in range(0, height, tile[1]):
        for x in range(0, width, tile[2]):
            edge = {"edgecolor": "#666666", "linewidth": 0.4}
            if lit[y, x]:
                edge = {"edgecolor": CHOSEN, "linewidth": 1.6, "zorder": 2}
            size = (min(tile[2], width - x), min(tile[1], height - y))
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), *size, facecolor="none", **edge))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def blank_figure(width: float, height: float) -> Figure:
    """A figure that belongs to no window, so that the demo needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110)
