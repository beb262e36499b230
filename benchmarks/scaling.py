"""Loss against training FLOPs: sizes x token counts x methods, an isoFLOP fit of each method.

    python -m benchmarks.scaling [--minutes 40] [--data doom] [--sizes 60m 120m]
    python -m benchmarks.scaling --plan [--tflops 300]

Trains every size at every number of tokens with dense attention, VSA and BSA, from the same
initialisation, clips and noise. All runs at one number of tokens are given the same share of the
minutes, by trial steps; it grows with that number, validation included; the frontier of a method
is the least loss that any of its sizes reaches with so many FLOPs. VSA's paper (arXiv 2505.13389)
found 2.53 times fewer training FLOPs than dense attention for the same loss, at 60M to 1.4B.
Appends rows to ``benchmarks/results/evidence.jsonl``; ``--plan`` trains nothing, and prints what
the larger sizes cost. A GPU trains 60m and 120m unless told which `--sizes`: by formula 1b4 takes
87 GiB of memory at 16,384 tokens, 93 with VSA, and 410m 119 and 127 GiB at 61,440.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.evidence.flops import step_flops
from benchmarks.evidence.runs import Run, all_of, command, parser, remembered
from benchmarks.evidence.scale import CPU, DATA, GPU, METHODS, POINTS, SCALES, Scale, here
from benchmarks.record import markdown
from flexsparse.flops import attention_flops
from models.attention import Slot
from models.video_dit import VideoDiTConfig, dit_1b4, dit_60m, dit_120m, dit_410m
from train.demo.measure import try_steps

Video = tuple[int, int, int]
CLIPS = 16  # a run validates on, as often as the others: half of what short runs would want


@dataclass(frozen=True)
class Cell:
    """One size at one number of tokens."""

    scale: Scale
    tokens: int


def cells(scale: Scale, names: Sequence[str] = ()) -> Iterator[Cell]:
    """Those of some sizes, or of all, the smallest first. Frames are taken as filmed: clips of half
    as many frames a second would be longer than a film.

    Raises:
        ValueError: a size that there is not.
    """
    machine = scale.name.split("-")[0]
    scale, sizes = SCALES[machine], SIZES[machine]
    unknown = [name for name in names if name not in sizes]
    if unknown:
        raise ValueError(f"--sizes {' '.join(unknown)}: {machine} has {', '.join(sizes)}")
    for video in VIDEOS[machine]:
        for name in names or sizes:
            model = sizes[name]
            sized = replace(model, video=video, patch=scale.model.patch, channels=3)
            key = f"{scale.name}-{name}-{sized.grid[0]}x{sized.grid[1]}x{sized.grid[2]}"
            t, h, w = sized.grid
            lr = scale.lr * scale.model.dim / sized.dim  # wider models want smaller steps
            sized_scale = replace(
                scale, name=key, model=sized, lr=lr, validation_clips=CLIPS, fps=0
            )
            yield Cell(sized_scale, t * h * w)


SIZES: dict[str, dict[str, VideoDiTConfig]] = {
    "cpu": {
        f"d{dim}": replace(CPU.model, dim=dim, heads=dim // 32, layers=layers, ffn=3 * dim)
        for dim, layers in ((64, 2), (96, 2), (128, 3))
    },
    "gpu": {"60m": dit_60m(), "120m": dit_120m(), "410m": dit_410m(), "1b4": dit_1b4()},
}
TRAINED = {"cpu": tuple(SIZES["cpu"]), "gpu": ("60m", "120m")}
VIDEOS: dict[str, tuple[Video, ...]] = {
    "cpu": ((8, 48, 64), (16, 48, 64), (16, 64, 96)),
    "gpu": ((16, 256, 256), (32, 256, 480)),
}


def steps_for(cell: Cell, attention: Slot, data: str, seconds: float) -> int:
    """As many as fit beside the validations, a multiple of the points of a curve."""
    with tempfile.TemporaryDirectory() as folder:
        config = cell.scale.trainer(attention, data, seed=0, steps=4 * POINTS, folder=Path(folder))
        step = try_steps(config).step_seconds
    forwards = (POINTS + 1) * cell.scale.validation_clips / cell.scale.batch
    left = seconds / step - forwards / 3  # a step is a forward and a backward of twice its cost
    return max(2 * POINTS, int(left) // POINTS * POINTS)


def attention_of(cell: Cell, attention: Slot) -> int:
    """Its FLOPs for a clip in all layers, forward and backward."""
    model = cell.scale.model
    tiling: Any = attention.tiling(model.grid)
    cost: dict[str, Any] = {}
    if tiling is not None:
        top_k, q_rows = attention.top_k_for(tiling), attention.q_rows_for(tiling)
        cost = dict(tiling=tiling, top_k=top_k, q_rows=q_rows)
    return model.layers * attention_flops(
        cell.tokens, model.heads, model.head_dim, backward=True, **cost
    )


def plan(scale: Scale, tflops: float) -> str:
    """What each run costs that sees 20 tokens for each parameter, as language models want."""
    lines = []
    for cell in cells(scale):
        for name, attention in METHODS.items():
            run = cell.scale.trainer(attention, "doom", seed=0, steps=POINTS, folder=Path())
            cost, of_attention = step_flops(run), attention_of(cell, attention)
            clips = -(-20 * cost.parameters // cell.tokens)
            total = clips * (of_attention + cost.other)
            lines.append(
                [
                    *(f"{cost.parameters / 1e6:,.1f}M", f"{cell.tokens:,}", name),
                    *(f"{x / 1e12:,.3f}" for x in (of_attention, cost.other)),
                    *(f"{clips:,}", f"{total:.2e}", f"{total / tflops / 3.6e15:,.2f}"),
                ]
            )
    head = ["parameters", "tokens", "method", "attention, TFLOP a clip", "all else", "clips"]
    return markdown([*head, "FLOPs", f"GPU hours at {tflops:g} TFLOP/s"], lines)


def main(argv: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=40, help="for all runs together")
    options.add_argument("--sizes", nargs="+", help="default: all on a CPU, 60m and 120m on a GPU")
    options.add_argument("--plan", action="store_true", help="print what the larger sizes cost")
    options.add_argument("--tflops", type=float, default=300, help="that a GPU is taken to reach")
    given = options.parse_args(argv)
    if given.plan:
        print(plan(GPU, given.tflops))
        return 0
    scale = SCALES.get(given.scale) or here()
    sizes = given.sizes or TRAINED.get(scale.name.split("-")[0], ())
    every = list(cells(scale, sizes))
    DATA[given.data].prepare(every[0].scale)
    share = 60 * given.minutes / sum(cell.tokens for cell in every) / len(METHODS)
    for cell in every:
        for name, attention in METHODS.items():
            asked = f"{given.data}, {given.minutes:g} minutes for {' '.join(sizes)}"
            steps = remembered(
                given.out / cell.scale.name,
                f"scaling of {name} on {asked}",
                lambda: steps_for(cell, attention, given.data, share * cell.tokens),  # noqa: B023
            )
            run = Run("scaling", given.data, name, attention)
            all_of([run], cell.scale, steps, given.out, given.results)
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
