"""The command: see options.py for what it takes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from flexsparse.diffusers.generate.checks import check
from flexsparse.diffusers.generate.clips import make_all
from flexsparse.diffusers.generate.clock import Clock
from flexsparse.diffusers.generate.command import status_of
from flexsparse.diffusers.generate.options import parse
from flexsparse.diffusers.generate.pipeline import (
    compile_blocks,
    load,
    place,
    processors_of,
    sparsify_all,
)
from flexsparse.diffusers.generate.sweep import sweep


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all clips are there, 2 for an error, 130 for Ctrl-C."""
    return status_of(lambda: run(parse(argv)))


def run(o: argparse.Namespace) -> Clock:
    """Make what was asked for; returns the seconds that each part took."""
    work = check(o)
    device = torch.device(o.device)
    clock = Clock(device)
    with clock.part("loading"):
        pipe = load(o, work.folder)
        own = [processors_of(getattr(pipe, name)) for name in work.folder.models]
        if o.method is not None and o.sweep is None:
            sparsify_all(pipe, o, work.folder, o.method)
        place(pipe, device, o.offload)
    if o.compile:
        compile_blocks(pipe, work.folder)
    if o.sweep is not None:
        sweep(pipe, o, work)
        return clock
    if o.compare:
        from flexsparse.diffusers.generate.compare.command import compare  # with matplotlib

        compare(pipe, o, work, own, clock)
    else:
        make_all(pipe, o, work, clock)
    print("\n".join(clock.lines()))
    return clock


if __name__ == "__main__":
    sys.exit(main())
