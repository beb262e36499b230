"""The demo's results in words: the table for the terminal, and report.md around the pictures."""

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template

from train.log import time_text


@dataclass(frozen=True)
class Outcome:
    """What one run cost and reached: seconds of a step, FLOPs of attention in it, bytes."""

    first_loss: float
    validation_loss: float
    step_seconds: float
    attention_seconds: float
    attention_flops: int
    peak_memory: int


@dataclass(frozen=True)
class Scene:
    """What both runs had in common, and how long the demo took."""

    device: str
    tokens: int
    tiles: int
    top_k: int
    layers: int
    parameters: int
    steps: int
    clips: int
    held_out: int
    seconds: float


ROWS = [
    ("loss on held-out clips", "validation_loss", 1, "{:.4f}"),
    ("one training step, ms", "step_seconds", 1e-3, "{:.0f}"),
    ("attention in a step, ms", "attention_seconds", 1e-3, "{:.0f}"),
    ("attention in a step, GFLOP", "attention_flops", 1e9, "{:.1f}"),
    ("peak memory of training, MiB", "peak_memory", 2**20, "{:.0f}"),
]
MEMORY_CPU = "how far a fresh process grew in a few training steps, at its largest"
MEMORY_GPU = "what a fresh process had allocated on the GPU in a few training steps, at its largest"

REPORT = Template("""\
# What sparse attention changed

The same small video model was trained twice, for $steps steps each, from the same weights, on the
same clips with the same noise. One run has **dense attention**: each of the $tokens tokens that
make up a clip looks at all $tokens. The other has **Video Sparse Attention (VSA)**: the clip is cut
into $tiles tiles, and each tile looks at the $top_k that it finds most useful, $sparsity fewer. It
chooses anew for every clip, layer and head, and learns to choose while it trains.

$table

In words:

$findings

![The loss of both runs, by step and by seconds](losses.png)

## What a tile looks at

One tile (yellow) of a clip that was not trained on, in the last layer of the trained models. Bright
tiles are looked at, dark ones cost nothing.

![The tiles that one tile looks at, over the clip's frames](tiles.png)

## Clips that the models made

Left, a real clip that was not trained on; beside it, what each model makes of its caption, both
from the same noise.

![A real clip, and a clip from each model](samples.gif)

Each model's clips alone: [dense.gif](dense.gif), [vsa.gif](vsa.gif).

## How to read this

- The model has $parameters parameters (VSA's gates not counted) and took $steps steps on $clips
  overlapping windows of a few clips: minutes of training, where a real one takes weeks. What it
  draws are blurred memories of these clips. They show that both runs learn, not how good either
  can get.
- The $held_out held-out clips are the last moments of the same scenes. Each run was made once, so a
  difference of a few per cent between the losses may be chance.
- VSA speeds up attention only, and attention grows with the square of a clip's length and size. A
  clip here has $tokens tokens; five seconds of 720p video have about 75,600, and attention is then
  most of the work.
- Steps were timed in turns, some dense, some VSA ($device); attention was timed alone, forward and
  backward in all $layers layers, in turns too; the figures are medians. FLOPs are counted from the
  shapes, with VSA's coarse stage and padding. Memory is $memory.

## Go on

- `$bin/tensorboard --logdir $folder` shows the curves and clips of both runs.
- `$bin/python -m train.demo --clips FOLDER` does the same with your own videos.

Made in $minutes.
""")


def write_report(path: Path, scene: Scene, outcomes: Mapping[str, Outcome]) -> None:
    """report.md, beside the pictures that it shows."""
    on_cpu = scene.device.startswith("CPU")
    text = REPORT.substitute(
        asdict(scene),
        tokens=f"{scene.tokens:,}",
        parameters=f"{scene.parameters:,}",
        sparsity=f"{1 - scene.top_k / scene.tiles:.1%}",
        table=table(outcomes),
        findings="\n".join(f"- {line}" for line in findings(outcomes)),
        memory=MEMORY_CPU if on_cpu else MEMORY_GPU,
        folder=path.parent,
        bin=Path(os.path.relpath(sys.executable)).parent,
        minutes=time_text(scene.seconds),
    )
    path.write_text(text, encoding="utf-8")


def table(outcomes: Mapping[str, Outcome]) -> str:
    """Markdown that also reads well on a terminal."""
    dense, vsa = outcomes["dense"], outcomes["vsa"]
    lines = [f"| {'':<28} | {'dense':>8} | {'VSA':>8} | {'dense / VSA':>11} |"]
    lines.append(f"|{'-' * 30}|{'-' * 9}:|{'-' * 9}:|{'-' * 12}:|")
    for label, field, unit, form in ROWS:
        a, b = getattr(dense, field) / unit, getattr(vsa, field) / unit
        row = f"| {label:<28} | {form.format(a):>8} | {form.format(b):>8} | {a / b:>11.2f} |"
        lines.append(row)
    return "\n".join(lines)


def findings(outcomes: Mapping[str, Outcome]) -> list[str]:
    """What the numbers say, in sentences."""
    dense, vsa = outcomes["dense"], outcomes["vsa"]
    share = dense.attention_seconds / dense.step_seconds
    loss = vsa.validation_loss / dense.validation_loss - 1
    memory = vsa.peak_memory / dense.peak_memory - 1
    return [
        f"Attention with VSA is {dense.attention_flops / vsa.attention_flops:.1f} times less "
        f"arithmetic and {_speed(dense.attention_seconds / vsa.attention_seconds)}.",
        f"A whole training step is {_speed(dense.step_seconds / vsa.step_seconds)}: dense "
        f"attention was {share:.0%} of it, and the rest of the model costs the same.",
        f"The loss on held-out clips fell from {dense.first_loss:.2f} to "
        f"{dense.validation_loss:.3f} with dense attention and from {vsa.first_loss:.2f} to "
        f"{vsa.validation_loss:.3f} with VSA, which is {_more(loss, 'higher', 'lower')}.",
        f"Training with VSA took {_more(memory, 'more', 'less')} memory.",
    ]


def _speed(ratio: float) -> str:
    return f"{ratio:.1f} times as fast" if ratio >= 1 else f"{1 / ratio:.1f} times as slow"


def _more(change: float, more: str, less: str) -> str:
    return f"{abs(change):.1%} {more if change > 0 else less}"
