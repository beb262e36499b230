"""The report's folder: metrics.json, pictures, and report.md around them."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from string import Template

import torch
from torch import Tensor

from models.wan.generate.quality.measure import Quality
from models.wan.generate.quality.pictures import (
    decibel_text,
    draw_frames,
    draw_layers,
    draw_psnr,
    draw_steps,
)
from models.wan.generate.quality.results import Clips, metrics_of, settings_of

REPORT = Template("""\
# $name instead of dense attention: what changes

The weights are those of the checkpoint; noise, prompt and sampler are the same for both.

$settings

- **PSNR of the $clip to the dense one: $psnr**, at its lowest $worst_frame.
- The velocity's relative error is $velocity on average over the steps, at most $worst_step.
- Of the attention's query-key pairs $sparsity were left out, over all layers and steps$dense_part.
- The layers that lose most: $worst. Least: $best.

$table

![Relative error of each layer's self-attention at each step](layers.png)

![Relative error of the velocity, and PSNR of the predicted clean latent, by step](steps.png)

![PSNR by frame](psnr.png)
$frames
## How to read this

- Relative error: the norm of sparse minus dense, over the norm of dense. Of the velocity (with
  guidance): both models see the dense trajectory's latent. Of a layer: both attentions see what
  the dense pass comes to the layer with, so no layer answers for those before it.
- The clips are each on a trajectory of its own, from the same noise. Small errors add up, and a
  clip with a low PSNR may be as good as the dense one and only another: look at the frames.
- PSNR is of $peak_text
  That of the predicted clean latent, `x - t * v`, has the range of the dense one as its peak.
- Layers, steps and frames count from 1. All numbers are in `metrics.json`, with null for an
  infinite PSNR.
- Nothing here is a measure of speed: each layer ran twice, and was compared.
""")


def write_report(
    o: argparse.Namespace, slot: str, shift: float, quality: Quality, clips: Clips
) -> None:
    """Make the folder `o.out`, which appears when it is whole.

    Args:
        o: the command's options.
        slot: the attention, in words.
        shift: of the noise levels.
    """
    settings = settings_of(o, slot, shift)
    folder = o.out.resolve()
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        metrics = json.dumps(metrics_of(settings, quality, clips), indent=1, allow_nan=False)
        (draft / "metrics.json").write_text(metrics + "\n", encoding="utf-8")
        draw_layers(draft / "layers.png", quality.attention)
        draw_steps(draft / "steps.png", quality.velocity, quality.clean)
        draw_psnr(draft / "psnr.png", clips.psnr, clips.frame)
        if clips.decoded:
            name = o.attention.upper()
            draw_frames(draft / "frames.png", clips.dense, clips.sparse, clips.psnr, name)
        report = _report(o, settings, quality, clips)
        (draft / "report.md").write_text(report, encoding="utf-8")
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _report(o: argparse.Namespace, settings: dict[str, str], quality: Quality, clips: Clips) -> str:
    by_layer = quality.attention[o.dense_steps :, o.dense_layers :].mean(0)
    order = by_layer.argsort(stable=True)
    few = max(1, min(3, len(order) // 2))
    step, frame = quality.velocity.argmax().item(), clips.psnr.argmin().item()

    def named(layers: Tensor) -> str:
        return ", ".join(f"{i + 1 + o.dense_layers} ({by_layer[i]:.3g})" for i in layers.tolist())

    picture = "\n![First, middle and last frame, dense above sparse](frames.png)\n"
    return REPORT.substitute(
        name=o.attention.upper(),
        settings="\n".join(
            ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in settings.items())]
        ),
        clip="clip" if clips.decoded else "latent (no VAE: not of pixels)",
        psnr=decibel_text(clips.total),
        worst_frame=f"{decibel_text(clips.psnr.min())} in {clips.frame} {frame + 1}",
        velocity=f"{quality.velocity.mean():.3g}",
        worst_step=f"{quality.velocity.max():.3g}, at step {step + 1}",
        sparsity=f"{1 - (quality.tiles * quality.queries).mean().item():.1%}",
        dense_part=", dense ones too" if o.dense_steps or o.dense_layers else "",
        worst=named(order.flip(0)[:few]),
        best=named(order[:few]),
        table=_table(quality),
        frames=picture if clips.decoded else "",
        peak_text="pixels in [0, 255], all three colours together."
        if clips.decoded
        else f"the normalised latent, its peak {clips.peak:.3g}, the dense one's range.",
    )


def _table(quality: Quality) -> str:
    """Means over quarters of the layers and of the steps, and over all."""
    steps, layers = (_quarters(size) for size in quality.attention.shape)
    rows = ["| mean relative error | " + " | ".join(_range("step", s) for s in steps) + " | all |"]
    rows.append("|---|" + "--:|" * (len(steps) + 1))

    def row(name: str, errors: Tensor) -> None:
        cells = [*(errors[s] for s in steps), errors]
        rows.append(f"| {name} | " + " | ".join(f"{cell.mean():.3g}" for cell in cells) + " |")

    for part in layers:
        row(f"attention, {_range('layer', part)}", quality.attention[:, part])
    row("velocity", quality.velocity)
    return "\n".join(rows)


def _quarters(size: int) -> list[slice]:
    parts = torch.arange(size).tensor_split(min(4, size))
    return [slice(int(part[0]), int(part[-1]) + 1) for part in parts]


def _range(name: str, part: slice) -> str:
    first, last = part.start + 1, part.stop
    return f"{name} {first}" if first == last else f"{name}s {first} to {last}"
