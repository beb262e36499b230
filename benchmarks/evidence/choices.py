"""Pictures of what a tile looks at: by layer, head and noise level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from flexsparse import VideoTiling
from train.demo.pictures import QUERY, blank_figure, busiest_tile, save, tile_of_pixel

ROWS = 8
CHOSEN = "tab:cyan"


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
