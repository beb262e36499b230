"""report.md: the demo's results around its pictures, for readers who know nothing of attention."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template

from train.demo.results import Outcome, findings, layer_table, table
from train.demo.settings import NAMES
from train.log import time_text
from train.sparsity.attention_stats import LayerStats
from train.sparsity.break_even import BreakEven


@dataclass(frozen=True)
class Scene:
    """What all runs had in common, and how long the demo took."""

    device: str
    tokens: int
    tiles: int
    top_k: int
    keep: float
    layers: int
    parameters: int
    steps: int
    clips: int
    held_out: int
    break_even: Mapping[str, BreakEven]
    seconds: float


MEMORY_CPU = "how far a fresh process grew in a few training steps, at its largest"
MEMORY_GPU = "what a fresh process had allocated on the GPU in a few training steps, at its largest"

REPORT = Template("""\
# What sparse attention changed

The same small video model was trained three times, for $steps steps each, from the same weights, on
the same clips with the same noise:

- **dense attention**: each of the $tokens tokens that make up a clip looks at all $tokens;
- **Video Sparse Attention (VSA)**: the clip is cut into $tiles tiles, and each tile looks at the
  $top_k that it finds most useful, $sparsity fewer;
- **Bidirectional Sparse Attention (BSA)**: about $top_k tiles as well, here fewer and there more,
  as the clip asks for; and of neighbouring tokens that are alike only some look at all. $keep of
  them do, the others take over what those found.

VSA and BSA choose anew for every clip, layer and head.

$table

In words:

$findings

![The loss of each run, by step and by seconds](losses.png)

## What a tile looks at

One tile (yellow) of a clip that was not trained on, in the last layer of the trained models. Bright
tiles are looked at, dark ones cost nothing.

![The tiles that one tile looks at, over the clip's frames](tiles.png)

How many tiles a tile looks at, over all tiles and heads of this clip: VSA has one answer, BSA many.

![How many tiles the tiles look at, in each layer](tiles_per_query.png)

## Who looks

With BSA, tokens (small patches of the clip) that are much like the one in the middle of their
neighbourhood do not look for themselves. The same clip, in the first head of each layer:

![The patches that look for themselves, over the clip's frames](queries.png)

## Layer by layer

What attention did to that clip in each layer, in all heads together, forward and backward.
Effective sparsity is the share of dense attention's work that was left out.

$layer_table

## Clips that the models made

Left, a real clip that was not trained on; beside it, what each model makes of its caption, all
from the same noise.

![A real clip, and a clip from each model](samples.gif)

Each model's clips alone: [dense.gif](dense.gif), [vsa.gif](vsa.gif), [bsa.gif](bsa.gif).

## How to read this

- The model has $parameters parameters (VSA's gates not counted) and took $steps steps on $clips
  overlapping windows of a few clips: minutes of training, where a real one takes weeks. What it
  draws are blurred memories of these clips. They show that all runs learn, not how good any can
  get.
- The $held_out held-out clips are the last moments of the same scenes. Each run was made once, so a
  difference of a few per cent between the losses may be chance.
- VSA and BSA speed up attention only, and attention grows with the square of a clip's length and
  size. A clip here has $tokens tokens; five seconds of 720p video have about 75,600, and attention
  is then most of the work.
- Steps were timed in turns, some dense, some VSA, some BSA ($device); attention was timed
  alone, forward and backward in all $layers layers, in turns too; the figures are medians. FLOPs
  are counted from the shapes and the tiles that were looked at, with the choice of tiles and
  padding. Memory is $memory.
- Here sparsity is the same from the first step to the last. A run with a schedule, in which it
  rises, trains with dense attention as long as that is faster: on this machine $break_even.

## Go on

- `$bin/tensorboard --logdir $folder` shows the curves and clips of all runs, and what
  each layer's attention did at each validation.
- `$bin/python -m train.demo --clips FOLDER` does the same with your own videos.

Made in $minutes.
""")


def write_report(
    path: Path,
    scene: Scene,
    outcomes: Mapping[str, Outcome],
    stats: Mapping[str, Sequence[LayerStats]],
) -> None:
    """report.md, beside the pictures that it shows."""
    on_cpu = scene.device.startswith("CPU")
    text = REPORT.substitute(
        asdict(scene),
        tokens=f"{scene.tokens:,}",
        parameters=f"{scene.parameters:,}",
        sparsity=f"{1 - scene.top_k / scene.tiles:.1%}",
        keep=f"{scene.keep:.0%}",
        table=table(outcomes),
        layer_table=layer_table(stats),
        findings="\n".join(f"- {line}" for line in findings(outcomes)),
        break_even=" and ".join(
            f"{_dense_until(found)} for {NAMES[run]}" for run, found in scene.break_even.items()
        ),
        memory=MEMORY_CPU if on_cpu else MEMORY_GPU,
        folder=path.parent,
        bin=Path(os.path.relpath(sys.executable)).parent,
        minutes=time_text(scene.seconds),
    )
    path.write_text(text, encoding="utf-8")


def _dense_until(found: BreakEven) -> str:
    if not found.pays:
        return "until the very target"
    return f"up to a sparsity of {found.sparsity:.0%}" if found.sparsity > 0 else "never"
