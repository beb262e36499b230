"""Pictures of recurring content: what one tile looks at, and losses between their floors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from flexsparse import VideoTiling
from train.data.copies.clips import RecurringClips
from train.data.copies.floors import Floors, copies_in
from train.demo.copies import middle_of
from train.demo.pictures import COLOURS, QUERY, blank_figure, save, spotlight, tile_of_pixel

RIGHT, WRONG, MISSED = "#35d04f", "#ff3b30", "#00b4ff"
DASHES, OVERLOOKED = (0, (2.5, 1)), "a copy it overlooks"
SHOWN = 8  # at most so many tiles beside one another


def says_of(looks: int, right: int, copies: int, tiles: int) -> str:
    """What a picture of one tile shows, which looks at so many others."""
    return (
        f"The yellow tile looks at {looks} of the {tiles - 1} other tiles: "
        f"{right} of these hold copies of it, of {copies} that do"
    )


def draw_looks(
    path: Path, clips: RecurringClips, tiling: VideoTiling, heads: Sequence[int]
) -> None:
    """What the tile in the middle of the first clip looks at, as a PNG: the whole clip, tiles that
    follow one another in time side by side, each by its first frame; beneath it the tile and those
    that it looks at, enlarged. Its title counts them.

    Args:
        heads: of each tile, how many heads look at it.
    """
    video = clips[0]["video"].permute(1, 2, 3, 0).numpy()
    video = (255 * np.clip(0.5 + video / 5, 0, 1)).astype(np.uint8)
    own = middle_of(tiling)
    truth = copies_in(clips.layout(0), tiling)[own] > 0
    looked = [i for i in range(tiling.num_tiles) if heads[i] and i != own]
    t, h, w = tiling.grid
    a, b, c = (side * patch for side, patch in zip(tiling.tile, clips.copies.patch))
    sides = a, b, c
    index = tile_of_pixel(video.shape[:3], tiling.grid, sides)
    lit = np.array([bool(heads[i] or truth[i] or i == own) for i in range(tiling.num_tiles)])
    figure = blank_figure(2.9 * t, 2.9 * h * sides[1] / (w * sides[2]) + 2.6)
    parts: Any = figure.subfigures(2, 1, height_ratios=(2.2, 1))
    above, below = parts
    for i, axes in enumerate(np.atleast_1d(above.subplots(1, t))):
        frame = i * sides[0]
        axes.imshow(spotlight(video[frame], lit[index[frame]]), interpolation="nearest")
        for j in range(i * h * w, (i + 1) * h * w):
            edge = _edge(j, own, bool(heads[j]), bool(truth[j]))
            y, x = divmod(j - i * h * w, w)
            corner = x * sides[2] + 0.1, y * sides[1] + 0.1
            size = sides[2] - 1.2, sides[1] - 1.2
            axes.add_patch(Rectangle(corner, *size, fill=False, **edge))
        _bare(axes)
        axes.set_xlabel(f"frames {i * sides[0] + 1} to {(i + 1) * sides[0]}", fontsize=10)
    right = int(truth[looked].sum())
    title = says_of(len(looked), right, int(truth.sum()), tiling.num_tiles)
    above.suptitle(title, fontsize=12.5, x=0.01, ha="left")
    shown = [own, *looked[: SHOWN - 1]]
    for axes, j in zip(below.subplots(1, max(len(shown), 4)), shown):
        i, (y, x) = j // (h * w), divmod(j % (h * w), w)
        rows, columns = slice(y * sides[1], (y + 1) * sides[1]), slice(x * sides[2], None)
        axes.imshow(video[i * sides[0], rows, columns][:, : sides[2]], interpolation="nearest")
        says = "the tile" if j == own else "a copy" if truth[j] else "no copy"
        axes.set_title(says, fontsize=11)
        _bare(axes)
        axes.spines[:].set(visible=True, **_edge(j, own, True, bool(truth[j])))
    for axes in below.axes[len(shown) :]:
        axes.set_visible(False)
    handles = [
        Patch(facecolor="none", linewidth=3, edgecolor=QUERY, label="the tile that looks"),
        Patch(facecolor="none", linewidth=3, edgecolor=RIGHT, label="it looks here: a copy"),
        Patch(facecolor="none", linewidth=3, edgecolor=WRONG, label="it looks here: no copy"),
        Patch(facecolor="none", linewidth=3, linestyle=DASHES, edgecolor=MISSED, label=OVERLOOKED),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=11)
    save(figure, path)


def _edge(tile: int, own: int, looked: bool, copy: bool) -> dict:
    if tile == own:
        return dict(edgecolor=QUERY, linewidth=3.5, zorder=3)
    if looked:
        return dict(edgecolor=RIGHT if copy else WRONG, linewidth=3, zorder=2)
    if copy:
        return dict(edgecolor=MISSED, linewidth=3, linestyle=DASHES, zorder=2)
    return dict(edgecolor="#333333", linewidth=0.4)


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def draw_between(path: Path, held_out: Sequence[tuple[int, float]], least: Floors) -> None:
    """(step, loss) of one run between what a tile by itself and the whole clip allow, as a PNG."""
    figure = blank_figure(8, 4)
    axes = figure.subplots()
    axes.plot(*zip(*held_out), color=COLOURS[1], linewidth=2.2, marker="o", label="VSA")
    floor(axes, least.tile, "the least that a tile\ncan reach which sees\nonly itself")
    floor(axes, least.everything, "the least with\nall copies")
    axes.set(
        xlabel="training steps", ylabel="loss (lower is better)", xlim=(0, None), ylim=(0, None)
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save(figure, path)


def floor(axes: Axes, loss: float, says: str) -> None:
    """A dashed line that no model of a kind gets below, and whose it is, right of the curves."""
    axes.axhline(loss, color="black", linewidth=1, linestyle="--")
    place: dict = dict(transform=axes.get_yaxis_transform(), ha="left", va="center", fontsize=9)
    axes.text(1.01, loss, says, **place)
