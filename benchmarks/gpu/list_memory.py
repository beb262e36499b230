"""Bytes that the choice of tiles takes in memory, by formula from shapes."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.gpu.cases import Setting, settings
from benchmarks.record import markdown

SETTINGS = [s for s in settings() if s.key == "75k-40x128"]
SETTINGS += [s for s in settings() if s.key == "153k-12x128"]
ROWS, COLUMNS = 16, 128  # that a program of select_tiles scores at a time, on Hopper
PROGRAMS = 132  # of select_tiles, each with scratch: one to a multiprocessor of an H200
GOAL = 50e6  # bytes that the lists of a layer should take at most


class Lists(NamedTuple):
    """Bytes of one layer, with a count of partial and of full tiles for each list."""

    bits: int
    by_query: int
    by_key: int
    means: int  # of q and k
    scratch: int  # of the choice

    def kept(self, training: bool) -> int:
        """Of lists, while the layer computes; for its backward it keeps the bits."""
        return self.by_query + (self.by_key if training else 0)

    def peak(self, training: bool) -> int:
        """While they are built: means and scratch are gone before there are lists."""
        return self.bits + max(self.means + self.scratch, self.kept(training))


def list_memory(setting: Setting, query_tiles: int, most: int) -> Lists:
    """With at most ``most`` tiles to a query block, where all key tiles are of one kind."""
    n, heads, dim = setting.tiling.num_tiles, setting.heads, setting.dim
    blocks = -(-n // query_tiles)
    programs = min(PROGRAMS, heads * -(-blocks // ROWS))
    return Lists(
        bits=4 * heads * blocks * -(-n // 32),
        by_query=4 * heads * blocks * (2 + most),
        by_key=4 * heads * n * (2 + blocks),
        means=2 * 4 * heads * n * dim,
        scratch=4 * programs * ROWS * (2 * dim + -(-n // COLUMNS) * COLUMNS),
    )


def table() -> str:
    head = ["MB", "bits", "by query block", "by key tile", "lists in inference", "in training"]
    head += [f"<= {GOAL / 1e6:.0f} MB", "peak while built, inference", "training"]
    lines = []
    for s in SETTINGS:
        n = s.tiling.num_tiles
        for x, most in ((1, round(n / 8)), (2, round(n / 8)), (4, n)):
            of, steps = list_memory(s, x, most), {"inference": False, "training": True}
            kept, peak = ([f(training) for training in steps.values()] for f in (of.kept, of.peak))
            met = [step for step, training in steps.items() if of.kept(training) <= GOAL]
            what = f"{s.tiling.tokens:,} tokens, {s.heads} heads, x{x}, {most} of {n} tiles"
            sizes = map(mb, (of.bits, of.by_query, of.by_key, *kept))
            lines.append([what, *sizes, " and ".join(met) or "no", *map(mb, peak)])
    return markdown(head, lines)


def mb(size: int) -> str:
    return f"{size / 1e6:,.1f}" if size else "0"
