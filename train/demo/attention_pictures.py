"""The demo's pictures of what attention chose: whose queries stay, how many tiles they look at."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from train.demo.pictures import COLOURS, blank_figure, save, spotlight
from train.sparsity.attention_stats import kept_pixels


def draw_kept_queries(
    path: Path, clip: np.ndarray, kept: Sequence[Tensor], columns: int = 4
) -> None:
    """Some frames of a clip, and for each layer with what does not look for itself dark, as a PNG.

    Args:
        clip: uint8 [T, H, W, 3].
        kept: layer by layer, the tokens whose query stays, bool [T, H, W], of tokens.
        columns: so many frames, evenly spaced.
    """
    frames, height, width = clip.shape[:3]
    rows = 1 + len(kept)
    columns = min(columns, frames)
    shown = [(2 * i + 1) * frames // (2 * columns) for i in range(columns)]
    figure = blank_figure(3.4 * columns + 0.3, rows * (3.4 * height / width + 0.42) + 0.65)
    panels = figure.subplots(rows, columns, squeeze=False)
    left = {"loc": "left", "fontsize": 12.5}
    panels[0][0].set_title("The clip", **left)
    for number, axes in zip(shown, panels[0], strict=True):
        axes.imshow(clip[number], interpolation="nearest")
    for layer, (row, stays) in enumerate(zip(panels[1:], kept, strict=True), start=1):
        share = stays.double().mean().item()
        title = f"BSA, layer {layer}: only {share:.0%} of the patches look for themselves (bright)"
        row[0].set_title(title, **left)
        lit = kept_pixels(stays, (frames, height, width)).numpy()
        for number, axes in zip(shown, row, strict=True):
            axes.imshow(spotlight(clip[number], lit[number]), interpolation="nearest")
    for number, axes in zip(shown, panels[-1], strict=True):
        axes.set_xlabel(f"frame {number + 1}", fontsize=11)
    for axes in panels.ravel():
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    handles = [
        Patch(facecolor="#b9c98a", label="patches that look at the tiles chosen for them (bright)"),
        Patch(
            facecolor="#3a3a3a",
            label="patches that take over what a bright one near them found (dark)",
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=11)
    save(figure, path)


def draw_tiles_per_query(path: Path, runs: Mapping[str, Sequence[Tensor]], tiles: int) -> None:
    """How many of the `tiles` each query tile looks at: int, layer by layer, by run; as a PNG."""
    layers = len(next(iter(runs.values())))
    columns = min(layers, 3)
    rows = -(-layers // columns)
    figure = blank_figure(5.5 * columns, 3.6 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for number, axes in enumerate(panels):
        axes.set_visible(number < layers)
        if number >= layers:
            continue
        for (name, counts), colour in zip(runs.items(), COLOURS[-len(runs) :], strict=True):
            shares = torch.bincount(counts[number].flatten(), minlength=tiles + 1).double()
            shares = (100 * shares / shares.sum()).numpy()
            label = f"{name}: {counts[number].double().mean():.1f} on average"
            axes.bar(np.arange(tiles + 1), shares, width=1, color=colour, alpha=0.75, label=label)
        axes.set_title(f"Layer {number + 1}", loc="left")
        axes.set(xlabel=f"tiles that a tile looks at, of {tiles}", ylabel="% of all tiles")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    most = max(int(layer.max()) for counts in runs.values() for layer in counts)
    panels[0].set_xlim(0, most + 2)
    save(figure, path)
