"""python -m train.compare RUN RUN ... [--out FILE.png]

Prints the runs side by side, and draws their losses.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from train.compare.picture import draw, is_drawn
from train.compare.runs import read_run
from train.compare.table import table


def main(argv: Sequence[str]) -> int:
    """0 when all was told; 2 for a folder that is no run, or a file in the picture's place."""
    parser = argparse.ArgumentParser(prog="python -m train.compare")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="directory of a run, --dump-folder")
    told = "picture of the losses, compare.png; an earlier one of this command is replaced"
    parser.add_argument("--out", type=Path, default="compare.png", metavar="FILE.png", help=told)
    args = parser.parse_args(argv)
    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # a line for each file it opens
    try:
        if args.out.suffix != ".png" or not args.out.parent.is_dir():
            raise ValueError(f"--out {args.out}: give a .png, in a folder that is there")
        if args.out.exists() and not is_drawn(args.out):
            raise ValueError(f"{args.out} is none of this command's pictures: give another --out")
        runs = [read_run(folder) for folder in args.runs]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(runs))
    draw(args.out, runs)
    print(f"\n{args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
