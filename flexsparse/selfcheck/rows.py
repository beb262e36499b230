"""The checks of what moves or averages rows: pooling, pruning and restoring."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flexsparse import reference
from flexsparse.selfcheck.cases import Case, draw
from flexsparse.selfcheck.laws import Ratios, best_first, differ, judge, repeated
from flexsparse.stages.pooling import pool_tiles
from flexsparse.stages.queries import KeptQueries, gather_rows, prune_queries, restore_queries


def pooling(case: Case, device: str) -> Ratios:
    """Means over tiles: one kernel each way on CUDA."""
    tiling, (x,) = case.tiling, draw(case, device, 1)
    generator = torch.Generator().manual_seed(1)
    g = torch.randn(*x.shape[:2], tiling.num_tiles, case.dim, generator=generator).to(device)

    def means(_: Any, dtype: torch.dtype, x: Tensor) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        return reference.pool(x.to(wide), tiling.video, tiling.tile)

    return judge(tiling, lambda x: pool_tiles(x, tiling), means, [x], g)


def prune(case: Case, device: str) -> Ratios:
    """Which queries stay, and that they and their gradients are moved to the last bit."""
    tiling, (q, g) = case.tiling, draw(case, device, 2)
    window, keep = case.sizes.window, 0.5
    kept = prune_queries(tiling.to_tiles(q), tiling, keep=keep, window=window)
    sizes = tiling.video, tiling.tile, window

    def ours(q: Tensor) -> Tensor:
        return prune_queries(q, tiling, keep=keep, window=window).q

    # the gradient of each kept row is that of its token, and of a dropped token 0
    rows = gather_rows(tiling.to_tiles(g), kept.index, tiling.rows, holes=True)
    stays = stay(kept)
    (out, dx), ratios = repeated(tiling, ours, [q], rows)
    due = gather_rows(tiling.to_tiles(q), kept.index, tiling.rows, holes=True)
    dx_due = torch.where(stays[..., None], g, 0)
    moved = {"out": differ(out, due), "dx": differ(tiling.from_tiles(dx), dx_due)}
    return _choice_of_queries(stays, q, *sizes, keep) | moved | ratios


def restore(case: Case, device: str) -> Ratios:
    """Rows and their gradients, in both ways to fill."""
    tiling, (q, x, g) = case.tiling, draw(case, device, 3)
    window, found = case.sizes.window, {}
    kept = prune_queries(tiling.to_tiles(q), tiling, window=window)
    for fill in ("nearest", "center"):
        source = reference.sources(stay(kept), tiling.video, tiling.tile, window, fill)

        def ours(x: Tensor, fill: Any = fill) -> Tensor:
            rows = gather_rows(x, kept.index, tiling.rows, holes=True)
            return restore_queries(rows, kept, tiling, fill=fill)

        def spread(_: Any, dtype: torch.dtype, x: Tensor, source: Tensor = source) -> Tensor:
            return x.to(dtype).gather(-2, source[..., None].expand_as(x))

        ratios = judge(tiling, ours, spread, [x], g)
        found |= {f"{name} ({fill})": ratio for name, ratio in ratios.items()}
    return found


def stay(kept: KeptQueries) -> Tensor:
    """Which tokens stay, in raster order: bool ``[B, H, tokens]``."""
    return kept.windows.tiling.from_tiles(kept.mask[..., None])[..., 0].bool()


def _choice_of_queries(
    stays: Tensor, q: Tensor, video: Any, tile: Any, window: Any, keep: float
) -> Ratios:
    """Each window keeps its center, its quota, and none more similar than one that it drops."""
    of_token, center = (x.to(q.device) for x in reference.windows_of_tokens(video, tile, window))
    names, number = of_token.unique(return_inverse=True)
    member = torch.nn.functional.one_hot(number, len(names)).bool()  # [tokens, windows]
    quotas = [reference.quota(keep, x) for x in member.sum(0).tolist()]
    kept = (stays[..., None] & member).sum(-2)

    def unlike(dtype: torch.dtype) -> Tensor:
        x = q.to(dtype)
        return -torch.cosine_similarity(x, x[..., center, :], dim=-1)

    # the center stays whatever its similarity: it is no part of the contest
    contest = member & (torch.arange(len(center), device=q.device) != center)[:, None]
    exact, plain = (
        unlike(dtype)[..., None].expand(*stays.shape, len(names)).where(contest, math.nan)
        for dtype in (torch.float64, torch.float32)
    )
    counts = torch.equal(kept, kept.new_tensor(quotas).expand_as(kept))
    return {
        "number of queries": 0.0 if counts else math.inf,
        "centers": 0.0 if bool(stays[..., center.unique()].all()) else math.inf,
        "choice of queries": best_first(stays[..., None].expand_as(exact), exact, plain, dim=-2),
    }
