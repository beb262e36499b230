"""Loss parity: dense attention, VSA and BSA from the same start, on the same clips and noise.

    python -m benchmarks.evidence.parity [--minutes 40] [--seeds 3] [--data doom footage]

On a CPU a model of 1M parameters, on a GPU one of 60M on VSA's pretraining grid, or with
--scale gpu-120m one of 120M. Times trial steps of each method first, and takes as many steps as fit
into the minutes, the same for all: clips are filmed and fetched before that, once, and what
compiling takes comes on top.
Appends rows to ``benchmarks/results/evidence.jsonl``; what is there is not trained again.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.evidence.runs import Run, all_of, command, parser, remembered
from benchmarks.evidence.scale import CPU, DATA, METHODS, POINTS, SCALES, Scale, here
from train.demo.measure import try_steps

LEAST = 4 * POINTS  # steps that make a curve


def steps_within(seconds: float, scale: Scale, data: list[str], seeds: int) -> int:
    """As many for each run as all of them have time for, a multiple of the points of a curve."""
    each = 0.0
    for name in data:
        DATA[name].prepare(scale)
        for attention in METHODS.values():
            with tempfile.TemporaryDirectory() as folder:
                config = scale.trainer(attention, name, seed=0, steps=LEAST, folder=Path(folder))
                each += try_steps(config).step_seconds
    steps = int(seconds / (each * seeds) / 1.15)  # validation takes a seventh of a run, about
    return max(LEAST, steps - steps % POINTS)


def main(argv: list[str] | None = None) -> int:
    options = parser(__doc__, nargs="+", default=sorted(DATA))
    options.add_argument(
        "--minutes", type=float, help="for all runs together; 40 on a CPU, 25 on a GPU"
    )
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--steps", type=int, help="of each run, in place of --minutes")
    given = options.parse_args(argv)
    scale = SCALES.get(given.scale) or here()
    minutes = given.minutes or (40 if scale is CPU else 25)
    steps = given.steps or remembered(
        given.out / scale.name,
        f"parity on {' and '.join(given.data)}, {given.seeds} seeds, {minutes:g} minutes",
        lambda: steps_within(60 * minutes, scale, given.data, given.seeds),
    )
    print(f"{steps} steps each, {given.seeds} seeds, on {' and '.join(given.data)}", flush=True)
    # All methods of a seed come before the next: a run that is cut off has whole comparisons.
    runs = [
        Run("parity", data, name, attention, seed)
        for seed in range(given.seeds)
        for data in given.data
        for name, attention in METHODS.items()
    ]
    all_of(runs, scale, steps, given.out, given.results)
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
