"""Take a GPU's measure: correctness, times, kernel options, in at most 9 minutes.

    python -m benchmarks.gpu [--only NAME] [--minutes 9] [--resume]

Needs torch >= 2.11 and triton, no network. First every backend of the library and every
method at every size is checked against fp64; only what is right is timed. Each result is a line of
``benchmarks/results/gpu.jsonl`` the moment it is there, so that an interrupted run keeps what it
measured, and ``--resume`` goes on from what this commit found on this device. ``--only`` runs a
part (machine, check, coarse, time, sweep) or what has NAME in the name of its setting or method,
such as 61k-12x128 or vsa. ``python -m benchmarks.report`` then writes docs/results/gpu.md and its
plots.

Exit status: 0 all checks right; 1 some wrong; 2 no GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.gpu.coarse_tables import coarse_tables
from benchmarks.gpu.parts import everything
from benchmarks.gpu.run import Run
from benchmarks.gpu.tables import tables
from benchmarks.record import RESULTS


def main(arguments: list[str] | None = None) -> int:
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=summary)
    parser.add_argument("--only", default="", metavar="NAME", help="a part, a setting or a method")
    parser.add_argument("--minutes", type=float, default=9.0, help="that the run may take in all")
    parser.add_argument("--resume", action="store_true", help="leave out what the results have")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of gpu.jsonl")
    parser.add_argument(
        "--rehearse", action="store_true", help="at tiny sizes on the CPU; keeps no result"
    )
    args = parser.parse_args(arguments)
    if not (args.rehearse or torch.cuda.is_available()):
        print(
            "benchmarks.gpu: there is no CUDA GPU here, so there is nothing to measure; --rehearse "
            "runs everything at tiny sizes on the CPU",
            file=sys.stderr,
        )
        return 2
    results = args.results
    if args.rehearse and results == RESULTS:  # what a CPU gives must not stand beside a GPU's
        results = Path(tempfile.mkdtemp(prefix="rehearsal-"))
    run = Run(
        device="cpu" if args.rehearse else "cuda",
        seconds=60 * args.minutes,
        only=args.only,
        results=results,
        resume=args.resume,
        workers=2 if args.rehearse else max(2, min(8, (os.cpu_count() or 2) // 2)),
    )
    before = len(run.rows())
    try:
        everything(run)
    finally:
        rows = run.rows()
        print(f"\n{tables(rows)}\n\n{coarse_tables(rows)}\n\nrows: {results / 'gpu.jsonl'}")
    return 1 if any(row.get("ok") is False for row in rows[before:]) else 0


if __name__ == "__main__":
    sys.exit(main())
