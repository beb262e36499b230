"""report.md: the demo's results around its pictures, for readers who know nothing of attention."""

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template

from train.demo.results import Outcome, findings, table
from train.log import time_text


@dataclass(frozen=True)
class Scene:
    """What the runs on footage had in common, and how long the demo took."""

    device: str
    tokens: int
    tiles: int
    top_k: int
    keep: float
    parameters: int
    steps: int
    clips: int
    held_out: int
    seconds: float


MEMORY_CPU = "how far a fresh process grew in a few training steps, at its largest"
MEMORY_GPU = "what a fresh process had allocated on the GPU in a few training steps, at its largest"

REPORT = Template("""\
# What sparse attention does

A video model cuts a clip into small patches, its tokens. With attention, each token looks at others
and takes from them what it needs: with dense attention at all of them, with sparse attention at few
*tiles* (blocks of neighbouring tokens) that it chooses anew for every clip.

$opening
## What does it cost, and what does it save?

One small model on footage, trained three times for $steps steps, from the same weights, on the same
clips with the same noise:

- **dense attention**: each of a clip's $tokens tokens looks at all $tokens;
- **VSA**: each of the $tiles tiles looks at $top_k, $sparsity fewer;
- **Bidirectional Sparse Attention (BSA)**: about $top_k as well, here fewer and there more; and of
  neighbouring tokens that are alike only $keep look at all, the others take over what those found.

$table

$findings

![The loss of each run, by step and by seconds](losses.png)

One tile (yellow) of a clip that was not trained on, in the last layer: bright tiles are looked at,
dark ones cost nothing.

![The tiles that one tile looks at, over the clip's frames](tiles.png)

Left, a real clip that was not trained on; beside it, what each model makes of its caption.

![A real clip, and a clip from each model](samples.gif)

## How to read this

- $parameters parameters and $clips overlapping windows of a few clips: minutes of training, where
  a real model takes weeks. The $held_out held-out clips are the last moments of the same scenes.
  Each run was made once: a few per cent between losses may be chance.
- VSA and BSA speed up attention only, which grows with the square of a clip's tokens. Here they are
  $tokens; five seconds of 720p video have about 75,600, and attention is then most of the work.
- Steps and attention (alone, forward and backward in all layers) were timed in turns, on $device;
  figures are medians. Memory is $memory.
- `$bin/tensorboard --logdir $folder` shows all curves; `$bin/python -m train.demo --clips FOLDER`
  does the same with your own videos.

Made in $minutes.
""")


def write_report(path: Path, opening: str, scene: Scene, outcomes: Mapping[str, Outcome]) -> None:
    """report.md, beside the pictures that it shows."""
    on_cpu = scene.device.startswith("CPU")
    text = REPORT.substitute(
        asdict(scene),
        opening=opening,
        tokens=f"{scene.tokens:,}",
        parameters=f"{scene.parameters:,}",
        sparsity=f"{1 - scene.top_k / scene.tiles:.1%}",
        keep=f"{scene.keep:.0%}",
        table=table(outcomes),
        findings="\n".join(f"- {line}" for line in findings(outcomes)),
        memory=MEMORY_CPU if on_cpu else MEMORY_GPU,
        folder=path.parent,
        bin=Path(os.path.relpath(sys.executable)).parent,
        minutes=time_text(scene.seconds),
    )
    path.write_text(text, encoding="utf-8")
