"""What must be right before Wan is timed: whole models where nothing is left out, and what each
layer's attention makes of its own choice.

By the one rule of tolerance: an error to fp64 of at most twice that of plain PyTorch in the same
dtype. A compiled model rounds otherwise than an eager one, and where scores are nearly equal it may
choose another tile; so choices are taken from the layer, and models are compared without any.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

import flexsparse.nn
from benchmarks.gpu.oracle import Attention, of_head, settled_rows
from benchmarks.wan.models import Grid, Method, compile_blocks, dense_model, draw, with_slot
from flexsparse import VideoTiling, bsa, prune_queries, reference, vsa
from flexsparse.choice.scaled import as_rule
from flexsparse.selfcheck.accuracy import error_ratios, recomputed_attention
from flexsparse.stages.windows import fit_window
from models.wan import WanConfig

Ratios = dict[str, float]


def small_grid(grid: Grid) -> Grid:
    """2 x 2 x 3 tiles of those that ``grid`` has, at its end as ragged as they are there."""
    tile = VideoTiling.fit(grid).tile
    counts = zip(grid, tile, (2, 2, 3))
    t, h, w = (min(size, count * side - (-size) % side) for size, side, count in counts)
    return t, h, w


@torch.no_grad()
def check_models(
    config: WanConfig,
    grid: Grid,
    methods: list[Method],
    device: torch.device,
    dtype: torch.dtype,
    compiled: bool,
) -> Ratios:
    """Of one layer of the model on a small grid, with all tiles and queries: error over the largest
    allowed, right up to 1, by kind of method. Eager dense attention is the measure."""
    grid = small_grid(grid)
    model = dense_model(replace(config, layers=1), device, dtype)
    batch = draw(config, grid, device, dtype)
    plain = model(*batch)
    exact = deepcopy(model).double()(*(x.double() for x in batch))
    ratios = {}
    for kind, method in {method.name.split()[0]: method for method in methods}.items():
        if kind == "dense" and not compiled:
            continue
        other = with_slot(model, method.whole, gates=0.0)
        if compiled:
            compile_blocks(other)
        (ratios[f"model, {kind}"],) = error_ratios([other(*batch)], [[plain]], [exact])
    return ratios


@torch.no_grad()
def check_attention(
    slot: nn.Module, call: Callable[..., Tensor], inputs: tuple, heads: tuple[int, ...] = (0, -1)
) -> float | None:
    """Of ``call``, the slot or its compiled self, at the size that is timed: the worst tile of some
    heads against fp64, given the slot's own choice. None for dense attention, which is torch's.

    Pruned queries are copies of what is checked; tiles whose choice hangs on rounding are left out.
    """
    if not isinstance(slot, flexsparse.nn.VSA | flexsparse.nn.BSA):
        return None
    x, q, k, v, tiling = inputs
    out = call(*inputs)
    choice = slot.choose(q, k, tiling)
    assert choice is not None
    asked = (choice.kept & _settled(slot, q, k, tiling))[..., None]
    worst = 0.0
    for head in {h % q.shape[1] for h in heads}:
        one = slice(head, head + 1)
        given = [tiling.zero_padding(y[:, one]) for y in (q, k, v)]
        chosen = choice.tile_map[0, head]
        exact, *plain = (
            torch.where(asked[:, one], _result(slot, head, x, given, chosen, tiling, *how), 0)
            for how in (
                (torch.float64, reference.attention),
                (out.dtype, reference.attention),
                (out.dtype, recomputed_attention),
            )
        )
        ours = [torch.where(asked[:, one], out[:, one], 0)]
        each = [[y] for y in plain]
        ratio = error_ratios(ours, each, [exact], given, parts=tiling.num_tiles)[0]
        worst = max(worst, ratio, key=lambda r: (r != r, r))  # NaN is worst
    return worst


def _result(
    slot: nn.Module,
    head: int,
    x: Tensor,
    given: list[Tensor],
    chosen: Tensor,
    tiling: VideoTiling,
    dtype: torch.dtype,
    attention: Attention,
) -> Tensor:
    """What a head must give for its choice, if no query were pruned, in ``dtype``."""
    q, k, v = given
    with torch.enable_grad():  # the oracle makes gradients as well
        fine = of_head(q, k, v, q, chosen, tiling, dtype, attention)[0].to(dtype)
    if not isinstance(slot, flexsparse.nn.VSA):
        return fine
    return fine + _coarse(slot, head, x, given, tiling, dtype)


def _coarse(
    slot: flexsparse.nn.VSA,
    head: int,
    x: Tensor,
    given: list[Tensor],
    tiling: VideoTiling,
    dtype: torch.dtype,
) -> Tensor:
    """The gated coarse branch of a head, in ``dtype``."""
    linear = cast(nn.Linear, slot.gate_coarse)
    weight, bias = (
        y.unflatten(0, (slot.num_heads, -1))[head].to(dtype) for y in (linear.weight, linear.bias)
    )
    gate = (x.to(dtype) @ weight.mT + bias)[:, None]
    counts = tiling.counts(x.device)[:, None]
    qc, kc, vc = (
        (y.to(dtype).unflatten(2, (-1, tiling.rows)).sum(3) / counts).to(dtype) for y in given
    )
    scores = qc @ kc.mT / qc.shape[-1] ** 0.5
    return gate * (scores.softmax(-1) @ vc).repeat_interleave(tiling.rows, 2)


def _settled(
    slot: flexsparse.nn.VSA | flexsparse.nn.BSA, q: Tensor, k: Tensor, tiling: VideoTiling
) -> Tensor:
    """Rows of the query tiles that choose the same however scores are rounded: ``[1, H, rows]``."""
    if isinstance(slot, flexsparse.nn.BSA):
        kept = prune_queries(q, tiling, keep=slot.keep, window=fit_window(slot.window, tiling))
        scores = bsa.block_scores(kept, k, tiling, slot.query_tiles)
    else:
        scores = vsa.block_scores(q, k, tiling, slot.query_tiles)
    assert slot.kv_rule is not None
    same = settled_rows(as_rule(slot.kv_rule, tiling), scores)
    same = same.repeat_interleave(slot.query_tiles, -1)[..., : tiling.num_tiles]
    return same.repeat_interleave(tiling.rows, -1)


def sparsity_of(slot: nn.Module, inputs: tuple) -> float:
    """Share of all pairs of tokens that a layer leaves out, by its own choice."""
    if not isinstance(slot, flexsparse.nn.VSA | flexsparse.nn.BSA):
        return 0.0
    _, q, k, _, tiling = inputs
    choice = slot.choose(q, k, tiling)
    assert choice is not None
    kept = choice.kept.sum() / (choice.kept[..., 0].numel() * tiling.tokens)
    return 1 - (choice.tile_map.float().mean() * kept).item()
