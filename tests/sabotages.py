"""What the tests of the self-check break, and which check must see it."""

import math

import torch

from flexsparse import VideoTiling, selfcheck, vsa
from flexsparse.choice import choose, text
from flexsparse.choice.rules import Threshold, TopK
from flexsparse.engines import cpu
from flexsparse.selfcheck import Check, run
from flexsparse.selfcheck.cases import FP32, Case
from flexsparse.stages import queries

SMALL = Case("ragged32", 64, FP32, TopK(3))
VSA = Check("VSA", SMALL, selfcheck.attention.vsa)
PAIRS = Check("VSA", Case("ragged32", 64, FP32, Threshold(2), 1, 2), selfcheck.attention.vsa)
GATED = Check("VSA", Case("ragged32", 64, FP32, TopK(3)), selfcheck.attention.gated_vsa)
BSA = Check("BSA", SMALL, selfcheck.attention.bsa)
TWO = Check("two", Case("padded64", 64, FP32, TopK(3)), selfcheck.attention.two_masks)
SDPA = next(c for c in selfcheck.checks() if c.backend == "SDPA FLASH_ATTENTION")
POOL = Check("pooling", Case("ragged32", 64, FP32), selfcheck.rows.pooling)
PRUNE = Check("pruning", Case("ragged32", 64, FP32), selfcheck.rows.prune)
RESTORE = Check("restoring", Case("ragged32", 64, FP32), selfcheck.rows.restore)


def quietly(*checks, device="cpu"):
    return run(device, report=lambda line: None, only=checks)


def scaled(number, factor):
    """The backward of the CPU operator with one of dq, dk, dv off by a factor."""

    def change(monkeypatch):
        real = cpu._backward

        def wrong(*arguments):
            grads = list(real(*arguments))
            grads[number] = grads[number] * (factor() if callable(factor) else factor)
            return tuple(grads)

        monkeypatch.setattr(cpu, "_backward", wrong)

    return change


def replaced(owner, name, make):
    def change(monkeypatch):
        monkeypatch.setattr(owner, name, make(getattr(owner, name)))

    return change


def gradient_off(real):
    def wrong(x, *arguments, **options):
        x = x.clone()
        if x.requires_grad:
            x.register_hook(lambda g: g * 1.01)
        return real(x, *arguments, **options)

    return wrong


def first_of_each_shape(real):
    """A cache that takes tensors of one shape for the same problem."""
    seen = {}

    def wrong(bits, *arguments, **options):
        mask = real(bits, *arguments, **options)
        return seen.setdefault(tuple(bits.shape), mask)

    return wrong


def every_other_time(factor):
    calls = []

    def next_factor():
        calls.append(None)
        return 1 if len(calls) % 2 else factor

    return next_factor


def fourth_time(factor):
    """After a mask, and another in two runs, the first mask again."""
    calls = []

    def next_factor():
        calls.append(None)
        return factor if len(calls) == 4 else 1

    return next_factor


def untouched(_):
    return lambda tiling, x, *lengths: x


def negated(real):
    return lambda *x, **y: -real(*x, **y)


def one_hole(real):
    def wrong(*arguments):
        index = real(*arguments).clone()
        index[0, 0, 0, 0] = -1
        return index

    return wrong


def without_first(real):
    """A window's center loses its place."""

    def wrong(q, windows):
        index = real(q, windows)
        rows, center, _, _ = windows.tables()
        middle = rows.gather(-1, center[..., None])[0, 0, 0]
        free = next(r for r in rows[0, 0].tolist() if r >= 0 and r not in index[0, 0, 0].tolist())
        first = index[..., :1, :]
        return torch.cat([torch.where(first == middle, free, first), index[..., 1:, :]], -2).int()

    return wrong


def one_tile_less(real):
    return lambda rule, n, *name: TopK(real(rule, n, *name).k - 1)


def sum_for_mean(real):
    return lambda x, tiling: real(x, tiling) * (1 + 1e-3)


def sums_for_means(real):
    return lambda xs, tiling, **given: [x * (1 + 1e-3) for x in real(xs, tiling, **given)]


# What is broken, the check that must see it, and results that it must name, all of them or some.
SABOTAGES = {
    "dq": (scaled(0, 1.01), VSA, {"dq"}),
    "dk": (scaled(1, 1.01), VSA, {"dk"}),
    "dv": (scaled(2, 0.99), VSA, {"dv"}),
    "dk-pairs": (scaled(1, 1.01), PAIRS, {"dk"}),
    "nan": (scaled(1, math.nan), VSA, {"dk", "dk in a second run", "dk with NaN in padding"}),
    "dk-bsa": (scaled(1, 1.01), BSA, {"dk"}),
    "bits": (scaled(2, every_other_time(1 + 1e-6)), VSA, {"dv in a second run"}),
    "padding": (
        replaced(VideoTiling, "zero_padding", untouched),
        VSA,
        {"dv with NaN in padding"},
    ),
    "second-mask": (
        replaced(text, "ChosenTiles", first_of_each_shape),
        TWO,
        {"out of the second mask", "dk of the second mask"},
    ),
    "first-again": (
        scaled(1, fourth_time(1 + 1e-6)),
        TWO,
        {"dk of the first mask again"},
    ),
    "worst-tiles": (replaced(choose, "coarse_scores", negated), VSA, {"choice of tiles"}),
    "worst-tiles-pairs": (
        replaced(choose, "coarse_scores", negated),
        PAIRS,
        {"choice of tiles"},
    ),
    "too-few-tiles": (replaced(vsa, "as_rule", one_tile_less), VSA, {"number of tiles"}),
    "pool": (
        replaced(selfcheck.rows, "pool_tiles", sum_for_mean),
        POOL,
        {"out", "dx"},
    ),
    "gates": (replaced(vsa, "pool_each", sums_for_means), GATED, {"out", "dgate_coarse"}),
    "restored": (
        replaced(queries, "gather_rows", gradient_off),
        RESTORE,
        {"dx (nearest)", "dx (center)"},
    ),
    "pruned": (replaced(queries, "gather_rows", gradient_off), PRUNE, {"dx"}),
    "similar": (replaced(queries, "cosine_to_center", negated), PRUNE, {"choice of queries"}),
    "hole": (replaced(queries, "choose_queries", one_hole), PRUNE, {"number of queries"}),
    "center": (replaced(queries, "choose_queries", without_first), PRUNE, {"centers"}),
}
