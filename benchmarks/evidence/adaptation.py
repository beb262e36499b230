"""A dense model adapted to sparse attention by schedules of sparsity: what is lost, and when.

    python -m benchmarks.evidence.adaptation [--steps 192] [--data doom]

Trains a dense model for `steps`, then goes on from its weights for as many: dense, with VSA's
schedule (arXiv 2505.13389) and BSA's (arXiv 2509.01085, as a secondary source has it), and with the
target from the first step on, whose loss before that step is that of sparse attention without any
training. Their steps are shortened in proportion: the target is reached after half of them. Appends
rows to ``benchmarks/results/evidence.jsonl``.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from benchmarks.evidence.runs import Run, all_of, command, folder_of, parser
from benchmarks.evidence.scale import SCALES, Scale, here
from models.attention import BSA, VSA, Dense
from train.sparsity.schedules import FallingTiles, RisingSparsity

VSA_TARGET: Any = VSA(sparsity=0.875, adapt=True)
BSA_TARGET: Any = BSA(sparsity=0.86, keep=0.5)


def falling(scale: Scale, steps: int, target: Any = VSA_TARGET) -> FallingTiles:
    """Dense for a sixteenth of the steps, then fewer tiles eight times, to the target at half."""
    tiling = target.tiling(scale.model.grid)
    leaves = tiling.num_tiles - target.top_k_for(tiling)
    dense = max(1, steps // 16)
    return FallingTiles(
        dense_steps=dense, by=math.ceil(leaves / 8), every=max(1, (steps // 2 - dense) // 8)
    )


def rising(steps: int, target: Any = BSA_TARGET) -> RisingSparsity:
    """By 0.03, as in the paper, to the target at half of the steps."""
    return RisingSparsity(every=max(1, steps // 2 // math.ceil(target.sparsity / 0.03)))


def main(argv: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, help="of each run; 192 on a CPU, 1000 on a GPU")
    given = options.parse_args(argv)
    scale, out = SCALES.get(given.scale) or here(), given.out
    steps = given.steps or scale.steps
    base = Run("adaptation", given.data, "dense before", Dense())
    start = folder_of(base, scale, steps, out) / "checkpoint" / f"step-{steps}"
    common: Any = dict(experiment="adaptation", data=given.data, initial=start)
    after = [
        Run(name="dense on", attention=Dense(), **common),
        Run(name="vsa by schedule", attention=VSA_TARGET, schedule=falling(scale, steps), **common),
        Run(name="bsa by schedule", attention=BSA_TARGET, schedule=rising(steps), **common),
        Run(name="vsa at once", attention=VSA_TARGET, **common),
        Run(name="bsa at once", attention=BSA_TARGET, **common),
    ]
    all_of([base, *after], scale, steps, out, given.results)
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
