"""The report's folder: metrics.json, pictures, and report.md around them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from string import Template

import torch
from torch import Tensor

from flexsparse.diffusers.generate.compare.pictures import (
    draw_frames,
    draw_held,
    draw_layers,
    draw_psnr,
    draw_steps,
)
from flexsparse.diffusers.generate.compare.results import Clips, Quality, decibel_text, metrics_of

REPORT = Template("""\
# Sparse instead of dense attention: what changes

The weights are the pipeline's; noise, prompt and scheduler are the same for both clips.

$settings

- **PSNR of the $clip to the dense one: $psnr**, at its lowest $worst_frame. The root mean square of
  the difference is $error of the peak.
- The model's output has a relative error of $output on average over the steps, at most $worst_step.
- Of the attention's query-key pairs $sparsity were left out, over all layers and steps, dense ones
  too. The chosen tiles hold $held of dense attention's weight$least.
- The layers that lose most: $worst. Least: $best.

$table

![Relative error of each layer's self-attention at each step](layers.png)

![Share of dense attention's weight that the chosen tiles hold](held.png)

![Relative error of the model's output, and PSNR of its input, by step](steps.png)

![PSNR by frame](psnr.png)
$frames
## How to read this

- A step is a noise level: the calls with and without the prompt count together.
- Relative error: the norm of sparse minus dense, over the norm of dense. Of the model's output:
  both are given the dense clip's latent. Of a layer: both attentions are given what the dense pass
  comes to the layer with, so no layer answers for those before it.
- Weight held: of a query's softmax over all keys, what falls on the tiles that it attends to; a
  mean over heads and the queries of up to 64 tiles, taken evenly over the video.
- The clips each have a trajectory of their own, from the same noise. Small errors add up, and a
  clip with a low PSNR may be as good as the dense one and only another: look at the frames.
- PSNR is of $peak_text
  That of the model's input has the range of the dense one as its peak.
- Layers count from 0, as for `--dense-layers`, steps and frames from 1. All numbers are in
  `metrics.json`, with null for an infinite PSNR.
- Nothing here is a measure of speed: for the dense clip each layer ran twice, and was compared.
""")


def write_report(folder: Path, settings: dict[str, str], quality: Quality, clips: Clips) -> None:
    """Make the folder, which appears when it is whole."""
    folder = folder.absolute()
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        metrics = json.dumps(metrics_of(settings, quality, clips), indent=1, allow_nan=False)
        (draft / "metrics.json").write_text(metrics + "\n", encoding="utf-8")
        draw_layers(draft / "layers.png", quality.attention)
        draw_held(draft / "held.png", quality.held)
        draw_steps(draft / "steps.png", quality.output, quality.latents)
        draw_psnr(draft / "psnr.png", clips.psnr, "frame" if clips.decoded else "latent")
        if clips.decoded:
            draw_frames(draft / "frames.png", clips.dense, clips.sparse, clips.psnr, "sparse")
        report = _report(settings, quality, clips)
        (draft / "report.md").write_text(report, encoding="utf-8")
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _report(settings: dict[str, str], quality: Quality, clips: Clips) -> str:
    sparse = (quality.tiles * quality.queries < 1).any(0)  # layers, at some noise level
    numbers = sparse.nonzero()[:, 0] if sparse.any() else torch.arange(len(sparse))
    by_layer = quality.attention.mean(0)[numbers]
    order = by_layer.argsort(stable=True)
    few = max(1, min(3, len(order) // 2))
    step, frame = quality.output.argmax().item(), clips.psnr.argmin().item()
    held = quality.held[quality.tiles < 1]
    least = f", in its least layer and step {held.min():.1%}" if len(held) else ""

    def named(places: Tensor) -> str:
        return ", ".join(f"{numbers[i]} ({by_layer[i]:.3g})" for i in places.tolist())

    picture = "\n![First, middle and last frame, dense above sparse](frames.png)\n"
    of = "frame" if clips.decoded else "latent"
    return REPORT.substitute(
        settings="\n".join(
            ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in settings.items())]
        ),
        clip="clip" if clips.decoded else "latent (not decoded: not of pixels)",
        psnr=decibel_text(clips.total),
        error=f"{clips.error:.4f}",
        worst_frame=f"{decibel_text(clips.psnr.min())} in {of} {frame + 1}",
        output=f"{quality.output.mean():.3g}",
        worst_step=f"{quality.output.max():.3g}, at step {step + 1}",
        sparsity=f"{1 - (quality.tiles * quality.queries).mean().item():.1%}",
        held=f"{quality.held.mean():.1%}",
        least=least,
        worst=named(order.flip(0)[:few]),
        best=named(order[:few]),
        table=_table(quality),
        frames=picture if clips.decoded else "",
        peak_text="pixels in [0, 255], all three colours together."
        if clips.decoded
        else f"the latent, its peak {clips.peak:.3g}, the dense one's range.",
    )


def _table(quality: Quality) -> str:
    """Means over quarters of the layers and of the steps, and over all."""
    steps, layers = (quarters(size) for size in quality.attention.shape)
    names = [f"{_range('step', s, 1)}, noise {_levels(quality.levels[s])}" for s in steps]
    rows = ["| mean | " + " | ".join(names) + " | all |", "|---|" + "--:|" * (len(steps) + 1)]

    def row(name: str, values: Tensor) -> None:
        cells = [*(values[s] for s in steps), values]
        rows.append(f"| {name} | " + " | ".join(f"{cell.mean():.3g}" for cell in cells) + " |")

    for part in layers:
        row(f"error of attention, {_range('layer', part, 0)}", quality.attention[:, part])
    row("error of the model's output", quality.output)
    for part in layers:
        row(f"weight held, {_range('layer', part, 0)}", quality.held[:, part])
    return "\n".join(rows)


def quarters(size: int) -> list[slice]:
    """Up to four parts of so many numbers, in their order, as even as they can be."""
    parts = torch.arange(size).tensor_split(min(4, size))
    return [slice(int(part[0]), int(part[-1]) + 1) for part in parts]


def _range(name: str, part: slice, begin: int) -> str:
    first, last = part.start + begin, part.stop - 1 + begin
    return f"{name} {first}" if first == last else f"{name}s {first} to {last}"


def _levels(levels: Tensor) -> str:
    first, last = (f"{level:.3g}" for level in (levels[0], levels[-1]))
    return first if first == last else f"{first} to {last}"
