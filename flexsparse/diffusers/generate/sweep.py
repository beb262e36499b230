"""A clip at a few densities: what each costs, and how far it is from the dense one."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexsparse.diffusers.generate.clips import make
from flexsparse.diffusers.generate.clock import Clock
from flexsparse.diffusers.generate.compare.results import Clips, decibel_text
from flexsparse.diffusers.generate.pipeline import at_sparsity, sparsify_all
from flexsparse.diffusers.generate.timing import MODEL
from flexsparse.diffusers.generate.warm import warm
from flexsparse.diffusers.generate.work import Clip, Work, beside, name_of


@dataclass(frozen=True)
class Row:
    """A clip of the table; of the dense one the sparsity is None."""

    sparsity: float | None
    seconds: float
    psnr: float
    error: float
    path: Path

    def cells(self, dense: Row) -> list[str]:
        of_dense = self.sparsity is None
        return [
            name_of(self.sparsity),
            f"{self.seconds:.2f} s",
            f"{dense.seconds / self.seconds:.2f}x",
            "" if of_dense else decibel_text(self.psnr),
            "" if of_dense else f"{self.error:.4f}",
            str(self.path),
        ]


def sweep(pipe: Any, o: argparse.Namespace, work: Work) -> list[Row]:
    """Make the clip densely and at each sparsity, and print the table, the quickest first."""
    (clip,) = work.clips
    rows: list[Row] = []
    dense = None
    for sparsity in (None, *o.sweep):
        if sparsity is not None:
            sparsify_all(pipe, o, work.folder, at_sparsity(o.method, sparsity))
        path, made, seconds = _timed(pipe, o, work, clip, sparsity)
        dense = made if dense is None else dense
        clips = Clips.of(dense, made)
        rows.append(Row(sparsity, seconds, clips.total.item(), clips.error, path))
    print("\n".join(table(rows, o.max_error)))
    return rows


def table(rows: list[Row], most: float) -> list[str]:
    """Lines for each clip, by time, and the quickest whose error is within the given one."""
    dense = next(row for row in rows if row.sparsity is None)
    rows = sorted(rows, key=lambda row: row.seconds)
    names = ["sparsity", "transformer", "faster", "PSNR", "error", "clip"]
    cells = [names, *(row.cells(dense) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join(f"{x:<{w}}" for x, w in zip(row, widths)).rstrip() for row in cells]
    best = next(row for row in rows if row.error <= most)
    if best.sparsity is None:
        lines.append(f"none is quicker than dense attention with an error of at most {most:g}")
    else:
        lines.append(
            f"the quickest with an error of at most {most:g}: --sparsity {best.sparsity:g}, "
            f"{dense.seconds / best.seconds:.2f} times as fast as dense"
        )
    return lines


def _timed(
    pipe: Any, o: argparse.Namespace, work: Work, clip: Clip, sparsity: float | None
) -> tuple[Path, Tensor, float]:
    """Its file, the clip, and the seconds in the transformer, after steps that are not timed."""
    clip = replace(clip, path=beside(clip.path, name_of(sparsity)))
    warm(pipe, o, work, clip, sparsity is not None)
    clock = Clock(torch.device(o.device))
    path, made = make(pipe, o, work, clip, clock)
    return path, made, clock.seconds[MODEL]
