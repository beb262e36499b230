"""The report's pictures, each a PNG: errors by layer and step, PSNR by frame, and frames."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from torch import Tensor

from flexsparse.diffusers.generate.compare.results import decibel_text

DENSE, SPARSE = "#3c6eb4", "#e07b28"
ZERO = "#d9d9d9"


def draw_layers(path: Path, errors: Tensor) -> None:
    """Relative errors ``[steps, layers]`` as a map, colours by their logarithm; zeros are grey."""
    low, high = _limits(errors)
    norm = LogNorm(low, high)
    shown = errors.where(errors > 0, torch.nan)
    figure, bar = _map(shown, norm, "Self-attention's output, relative error to dense")
    # few decades want numbers between the powers of ten, many have no room for them
    between = range(1, 10) if high / low <= 5 else (1, 2, 5) if high / low <= 1000 else (1,)
    bar.ax.yaxis.set_major_locator(LogLocator(subs=between))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    bar.ax.minorticks_off()
    if (errors == 0).any():
        handle = Patch(facecolor=ZERO, label="no difference at all")
        figure.legend(handles=[handle], loc="outside lower left", frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def draw_held(path: Path, held: Tensor) -> None:
    """Shares of dense attention's weight ``[steps, layers]`` as a map."""
    figure, _ = _map(held, Normalize(0, 1), "Dense attention's weight that the chosen tiles hold")
    figure.savefig(path, dpi=110)


def draw_steps(path: Path, output: Tensor, latents: Tensor) -> None:
    """By step: the relative error of the model's output ``[steps]``, the PSNR of its input."""
    figure = _figure(11, 3.8)
    left, right = figure.subplots(1, 2)
    _draw_line(left, output)
    left.set(xlabel="step", ylabel="relative error", ylim=(0, None))
    left.set_title("The model's output, for the dense clip's latent", loc="left", fontsize=11)
    _draw_line(right, latents)
    right.set(xlabel="step", ylabel="PSNR, dB")
    right.set_title("The model's input, in each clip its own", loc="left", fontsize=11)
    figure.savefig(path, dpi=110)


def draw_psnr(path: Path, psnr: Tensor, frame: str) -> None:
    """PSNR ``[frames]`` of the sparse clip to the dense one; `frame` says of what frames."""
    figure = _figure(7.5, 3.8)
    axes = figure.subplots()
    _draw_line(axes, psnr)
    axes.set(xlabel=frame, ylabel="PSNR, dB")
    axes.set_title("The sparse clip, compared with the dense one", loc="left", fontsize=11)
    figure.savefig(path, dpi=110)


def draw_frames(path: Path, dense: Tensor, sparse: Tensor, psnr: Tensor, name: str) -> None:
    """First, middle and last frame of uint8 ``[frames, height, width, 3]``, dense above sparse."""
    frames, height, width, _ = dense.shape
    shown = sorted({0, (frames - 1) // 2, frames - 1})
    figure = _figure(3.6 * len(shown) + 0.4, 2 * 3.6 * height / width + 0.7)
    panels = figure.subplots(2, len(shown), squeeze=False)
    for number, (above, below) in zip(shown, panels.T, strict=True):
        above.imshow(dense[number].numpy(), interpolation="nearest")
        below.imshow(sparse[number].numpy(), interpolation="nearest")
        above.set_title(f"frame {number + 1}", fontsize=11)
        below.set_xlabel(f"PSNR {decibel_text(psnr[number])}", fontsize=11)
    for axes in panels.ravel():
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, label in zip(panels[:, 0], ("dense", name), strict=True):
        axes.set_ylabel(label, fontsize=11)
    figure.savefig(path, dpi=110)


def _map(values: Tensor, norm: Normalize, title: str) -> tuple[Figure, Any]:
    """Values ``[steps, layers]``, steps from 1 and layers from 0, and the bar of their colours;
    those that are NaN are grey."""
    steps, layers = values.shape
    figure = _figure(min(13.0, 4.6 + 0.2 * steps), min(9.0, 1.9 + 0.2 * layers))
    axes = figure.subplots()
    axes.set_facecolor(ZERO)
    edges = 0.5, steps + 0.5, layers - 0.5, -0.5
    axes.imshow(values.T.numpy(), cmap="viridis", norm=norm, extent=edges, aspect="auto")
    axes.set(xlabel="step", ylabel="layer")
    axes.set_title(title, loc="left", fontsize=11)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    return figure, figure.colorbar(ScalarMappable(norm, "viridis"), ax=axes)


def _draw_line(axes: Axes, values: Tensor) -> None:
    """Values by their number from 1; where they are infinite, a mark at the upper edge."""
    number = torch.arange(1, len(values) + 1)
    finite = values.isfinite()
    marker = "o" if len(values) <= 60 else None
    drawn = values.where(finite, torch.nan)
    axes.plot(number.numpy(), drawn.numpy(), color=SPARSE, marker=marker, markersize=4)
    if not finite.all():
        at, edge = number[~finite].numpy(), axes.get_xaxis_transform()
        style: Any = dict(color=DENSE, marker="^", label="equal to dense")
        axes.scatter(at, [0.97] * len(at), transform=edge, **style)
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.99), borderpad=0)
    if not finite.any():
        axes.set_yticks([])
    axes.set_xlim(0.5, len(values) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _limits(errors: Tensor) -> tuple[float, float]:
    """The 1, 2 or 5 times a power of ten next to the smallest and largest that are not zero."""
    some = errors[errors > 0]
    if not len(some):
        return 0.1, 1.0
    low, high = some.min().item(), some.max().item()
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    marks = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
    return max(m for m in marks if m < low), min(m for m in marks if m > high)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")
