"""The kernels of the coarse stage one by one: how each is called, what is right, how it is timed.

Choice, lists and attention between tiles find their inputs in a GPU's cache where these are small
enough, as they do in a layer, right after pooling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.cases import Setting
from benchmarks.gpu.oracle import settled_rows
from benchmarks.gpu.query_stages import prune, restore
from benchmarks.gpu.unit import HEADS, Moves, Unit, accurate, bytes_of, kernel
from flexsparse import Mass, Threshold, TopK
from flexsparse.choice.choose import choose_tiles, coarse_scores, pool_scores
from flexsparse.choice.lists import block_lists
from flexsparse.choice.selection import unpack_bits
from flexsparse.selfcheck.accuracy import recomputed_attention
from flexsparse.selfcheck.laws import Ratios, best_first, differ
from flexsparse.stages.coarse import coarse_attention, coarse_attention_twin
from flexsparse.stages.gates import combine, combine_twin
from flexsparse.stages.pooling import pool_each, pool_each_twin

RULES: dict[str, Callable[[int], Any]] = {
    "TopK": TopK,
    "Threshold": Threshold,
    "Mass": lambda _: Mass(0.9),
}


def chosen_tiles(setting: Setting) -> int:
    """At 87.5 %."""
    return max(1, round(setting.tiling.num_tiles / 8))


def _pool(setting: Setting, tensors: list[Tensor], moves: Moves, names: str) -> Unit:
    tiling, inputs = setting.tiling, tensors[: len(names)]
    judge = accurate(inputs, lambda *xs: pool_each_twin(xs, tiling))
    return kernel(lambda *xs: pool_each(xs, tiling), inputs, judge, moves)


def _choose(
    setting: Setting, tensors: list[Tensor], moves: Moves, rule: str, query_tiles: int
) -> Unit:
    tiling = setting.tiling
    counts = tiling.counts(tensors[0].device) if query_tiles > 1 and tiling.is_ragged else None
    chooser = RULES[rule](chosen_tiles(setting))
    pooled = list(pool_each(tensors[:2], tiling))

    def call(q: Tensor, k: Tensor) -> list[Tensor]:
        return [choose_tiles(q, k, chooser, counts=counts, query_tiles=query_tiles)]

    def scores(dtype: torch.dtype) -> Tensor:
        q, k = (x[:, HEADS].to(dtype) for x in pooled)
        return pool_scores(coarse_scores(q, k), counts, query_tiles)

    def judge(found: list[Tensor], _: Tensor) -> Ratios:
        chosen = unpack_bits(found[0][:, HEADS], tiling.num_tiles)
        exact, plain = scores(torch.float64), scores(torch.float32)
        differs = (chosen != chooser(plain)).any(-1) & settled_rows(chooser, plain)
        return {
            "best first": best_first(chosen, exact, plain, dim=-1),
            "what rounding does not decide": math.inf if differs.any() else 0.0,
        }

    return kernel(call, pooled, judge, moves)


def _lists(setting: Setting, tensors: list[Tensor], moves: Moves, query_tiles: int) -> Unit:
    tiling, k = setting.tiling, chosen_tiles(setting)
    means_q, means_k = pool_each(tensors[:2], tiling)
    bits = choose_tiles(means_q, means_k, TopK(k), query_tiles=query_tiles)

    def call(by_key: bool, bits: Tensor = bits) -> list[Tensor]:
        """Counts and indices by turns."""
        by_query, back = block_lists(bits, tiling, most=k, by_key=by_key)
        return [x for x in (*by_query, *(back or ())) if x is not None]

    def check() -> Ratios:
        first, again, alone = (_listed(call(by_key)) for by_key in (True, True, False))
        twins = _listed([x.to(bits.device) for x in call(True, bits[:, HEADS].cpu())])
        return {
            "lists": max(_unlike(a[:, HEADS], b) for a, b in zip(first, twins, strict=True)),
            "by query block alone": max(map(differ, alone, first)),
            "in a second run": max(map(differ, first, again)),
        }

    steps = {"inference": partial(call, False), "training": partial(call, True)}
    return Unit(steps, check, lambda step: bytes_of(moves[step]))


def _listed(lists: list[Tensor]) -> list[Tensor]:
    """Counts and indices, -1 past a count, where anything may stand."""
    found = []
    for num, index in zip(lists[::2], lists[1::2]):
        listed = torch.arange(index.shape[-1], device=index.device) < num[..., None]
        found += [num, torch.where(listed, index, -1)]
    return found


def _unlike(a: Tensor, b: Tensor) -> float:
    """Lists of a CPU are wider, for its own kernels."""
    width = min(a.shape[-1], b.shape[-1])
    return differ(a[..., :width], b[..., :width])


def _attention(setting: Setting, tensors: list[Tensor], moves: Moves) -> Unit:
    pooled = list(pool_each(tensors[:3], setting.tiling))
    every = torch.ones(1, 1, dtype=torch.bool, device=pooled[0].device)
    judge = accurate(
        pooled,
        lambda q, k, v: [coarse_attention_twin(q, k, v)],
        lambda q, k, v: [recomputed_attention(q, k, v, every)],
    )
    return kernel(lambda q, k, v: [coarse_attention(q, k, v)], pooled, judge, moves)


def _combine(setting: Setting, tensors: list[Tensor], moves: Moves) -> Unit:
    """v stands for the fine output, whose dtype and memory order it has."""
    tiling = setting.tiling
    _, _, fine, *gates = tensors
    q, k, v = pool_each(tensors[:3], tiling)
    inputs = [fine, coarse_attention(q, k, v), *gates]

    def call(fine: Tensor, coarse: Tensor, gate_coarse: Tensor, gate_fine: Tensor) -> list[Tensor]:
        return [combine(fine, coarse, gate_coarse, gate_fine, tiling)]

    def twin(fine: Tensor, coarse: Tensor, gate_coarse: Tensor, gate_fine: Tensor) -> list[Tensor]:
        return [combine_twin(fine, coarse, gate_coarse, gate_fine, tiling)]

    return kernel(call, inputs, accurate(inputs, twin, parts=tiling.num_tiles), moves)


class Stage(NamedTuple):
    """A kernel: its name in ``traffic`` of traffic.py, and how to make it of a setting, the
    setting's tensors and the bytes that it moves."""

    moves: str
    make: Callable[[Setting, list[Tensor], Moves], Unit]


STAGES = {
    "pool q, k": Stage("pool q, k", partial(_pool, names="qk")),
    "pool q, k, v": Stage("pool q, k, v", partial(_pool, names="qkv")),
    **{
        f"choose {rule} x{x}": Stage(f"choose x{x}", partial(_choose, rule=rule, query_tiles=x))
        for rule, x in (("TopK", 1), ("TopK", 2), ("Threshold", 1), ("Mass", 1))
    },
    **{f"lists x{x}": Stage(f"lists x{x}", partial(_lists, query_tiles=x)) for x in (1, 2)},
    "coarse attention": Stage("coarse attention", _attention),
    "combine": Stage("combine", _combine),
    "prune": Stage("prune", prune),
    "restore": Stage("restore", restore),
}
