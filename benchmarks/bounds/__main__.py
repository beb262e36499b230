"""The least time of every kernel of a layer on an H200, from its machine code; needs no GPU.

    python -m benchmarks.bounds [SETTING ...]
    python -m benchmarks.bounds --search [SETTING ...]

A setting is one of ``benchmarks.gpu``, such as 153k-12x128; without, all of them, about a minute
each on one core. Each launch is a line of ``benchmarks/results/bounds.jsonl``, which
``benchmarks.gpu`` prints beside what it measures. A bound is never a time: docs/results/bounds.md
says what it leaves out. ``--search`` compiles FlexAttention's kernels with many compute blocks.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from benchmarks.compiled import pretend

ARCH = 90


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.bounds")
    parser.add_argument("names", nargs="*", metavar="SETTING", help="none: all")
    parser.add_argument("--only", default="", help="what has this in its method's name")
    parser.add_argument("--search", action="store_true", help="compute blocks, not layers")
    parser.add_argument("--results", type=Path, help="folder of bounds.jsonl")
    given = parser.parse_args()
    try:
        pretend.start(ARCH)  # imports torch
    except RuntimeError as error:
        parser.error(str(error))
    warnings.simplefilter("ignore")  # torch's own, about fake tensors
    from benchmarks.bounds.layers import METHODS, alike, print_row, rows_of
    from benchmarks.bounds.search import search
    from benchmarks.gpu.cases import settings
    from benchmarks.record import RESULTS, append

    known = {setting.key: setting for setting in settings()}
    unknown = set(given.names) - set(known)
    if unknown:
        parser.error(f"no such setting: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    due = alike(method for method in METHODS if given.only in method.name)
    for name in given.names or known:
        setting = known[name]
        found = (row for methods in due for row in rows_of(setting, methods))
        for row in search(setting, given.only) if given.search else found:
            print_row(row)
            append("bounds", row, given.results or RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
