"""Wan 2.1's denoising step with dense attention, VSA and BSA: time, and attention's share of it.

    python -m benchmarks.wan [--sizes wan_1_3b wan_14b] [--grids 16x28x52 21x30x52 21x45x80]
        [--methods dense vsa bsa] [--eager] [--budget SECONDS] [--results FILE] [--resume]

One forward of the transformer is counted, batch 1, with 512 text tokens and random weights, in
bf16 on a GPU, fp32 on a CPU; with guidance a denoising step is two of them (``step_ms``). On a GPU
blocks are compiled, and with ``--eager`` every case also runs without; on a CPU, where compiling
takes minutes, ``--compiled`` asks for it. First what is timed is proved right
(``benchmarks.wan.checks``); what is wrong makes no row. Attention is what passes in the slots,
which with VSA have a gate's projection to do as well; compiled, it is a layer's slot by itself,
times the layers. Methods run in turn, medians count, and ratios are to dense attention in the same
case, on a GPU by the fastest of torch's engines. Where the weights would fill more than half of
the memory, all layers have those of one block (``one_block``): shapes, and so times, are the same.

Rows go to ``benchmarks/results/wan.jsonl``, of a CPU to ``wan_cpu.jsonl``. Needs torch, einops and,
on a GPU, triton. Exit status: 0 all was right; 1 something was wrong or failed; 2 nothing was
begun.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.drawn import forget
from benchmarks.gpu.run import say
from benchmarks.record import RESULTS
from benchmarks.wan.models import Grid, methods
from benchmarks.wan.run import Case, Run, table
from models import wan

SIZES = {"wan_1_3b": wan.wan_1_3b, "wan_14b": wan.wan_14b, "debug": wan.debug}
KINDS = ["dense", "vsa", "bsa"]
GRIDS = ["16x28x52", "21x30x52", "21x45x80"]  # 61 frames at 448 x 832; 81 at 480p, and at 720p
ON_GPU = dict(sizes=["wan_1_3b", "wan_14b"], grids=GRIDS, layers=None, compiled=True)
ON_CPU = dict(sizes=["wan_1_3b"], grids=["8x16x16"], layers=1, eager=True)


def main(arguments: list[str] | None = None) -> int:
    on_gpu = torch.cuda.is_available()
    args = parse(arguments, **(ON_GPU if on_gpu else ON_CPU))
    file = args.results or RESULTS / ("wan.jsonl" if on_gpu else "wan_cpu.jsonl")
    try:
        cases = cases_of(args)
        if file.suffix != ".jsonl" or not file.parent.is_dir():
            raise ValueError(f"--results {file}: give a .jsonl file in a folder that exists")
    except ValueError as error:
        print(f"benchmarks.wan: {error}", file=sys.stderr)
        return 2
    torch.ones(31 << 18)  # see benchmarks/cpu/__main__.py: from here on glibc keeps freed memory
    run = Run("cuda" if on_gpu else "cpu", file, args.budget, args.rounds, args.query_tiles)
    wrong, rows = False, []
    for case in cases:
        if args.resume and run.has(case):
            print(f"{case}: {file.name} has it", flush=True)
            continue
        if (expected := run.expected(case)) > run.left:
            left = f"about {expected:.0f} s, and {max(run.left, 0):.0f} are left"
            print(f"{case}: left out, it takes {left}; --resume goes on", flush=True)
            continue
        begun = time.monotonic()
        try:
            rows += run.measure(case)
        except (ArithmeticError, RuntimeError) as error:  # the other cases go on
            wrong = wrong or not isinstance(error, torch.OutOfMemoryError)
            print(f"{case}: left out: {say(error)}", flush=True)
        else:
            run.slower *= (time.monotonic() - begun) / expected
        forget()
    print(f"\n{table(rows)}\n\nrows: {file}")
    return int(wrong)


def parse(arguments: list[str] | None, **defaults: Any) -> argparse.Namespace:
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser("python -m benchmarks.wan", description=summary)
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--sizes", nargs="+", metavar="SIZE", help=", ".join(SIZES))
    parser.add_argument("--grids", nargs="+", metavar="TxHxW", help="in tokens")
    parser.add_argument("--methods", nargs="+", default=KINDS, metavar="KIND", help="dense too")
    parser.add_argument("--layers", type=int, help="in place of the size's own; 1 on a CPU")
    parser.add_argument("--query-tiles", type=int, default=1, help="that choose together")
    parser.add_argument(
        "--compiled", action=switch, default=False, help="blocks compiled (on a GPU: yes)"
    )
    parser.add_argument(
        "--eager", action=switch, default=False, help="without compiling (on a CPU: yes)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed forwards of each method")
    parser.add_argument("--budget", type=float, default=540.0, metavar="SECONDS")
    parser.add_argument("--results", type=Path, metavar="FILE", help="a .jsonl to append to")
    parser.add_argument("--resume", action="store_true", help="leave out what the file has")
    parser.set_defaults(**defaults)
    return parser.parse_args(arguments)


def cases_of(args: argparse.Namespace) -> list[Case]:
    """In order of sizes, then grids, compiled first.

    Raises:
        ValueError: what there is no such thing as, in one line.
    """
    for name, given, known in (("size", args.sizes, SIZES), ("method", args.methods, KINDS)):
        if unknown := [x for x in given if x not in known]:
            raise ValueError(f"there is no {name} {unknown[0]!r}: give some of {', '.join(known)}")
    for name in ("rounds", "layers", "query_tiles"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; give at least 1")
    if not (args.compiled or args.eager):
        raise ValueError("--no-eager and --no-compiled leave nothing to time: give one of them")
    modes = [True] * args.compiled + [False] * args.eager
    cases = []
    for size in args.sizes:
        config = SIZES[size]()
        config = replace(config, layers=args.layers or config.layers)
        for text in args.grids:
            grid = grid_of(text)
            found = methods(grid, args.methods, args.query_tiles)
            cases += [Case(size, config, grid, found, compiled) for compiled in modes]
    return cases


def grid_of(text: str) -> Grid:
    sides = text.split("x")
    if len(sides) != 3 or not all(side.isdecimal() and int(side) for side in sides):
        raise ValueError(f"{text!r} is no grid: give tokens along T, H and W, such as 21x30x52")
    t, h, w = map(int, sides)
    return t, h, w


if __name__ == "__main__":
    sys.exit(main())
