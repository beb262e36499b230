"""Bidirectional Sparse Attention (BSA, arXiv 2509.01085): fewer queries, fewer keys for each."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flexsparse.checks import as_autocast, check_alike, check_query_tiles, check_text_lengths
from flexsparse.choice.block_mask import ChosenTiles, TileBlockMask
from flexsparse.choice.choose import choose_tiles, coarse_scores, of_tiles, pool_scores
from flexsparse.choice.rules import Rule
from flexsparse.choice.scaled import as_rule
from flexsparse.choice.selection import unpack_bits
from flexsparse.choice.text import (
    join,
    split,
    text_to_all,
    video_rows,
    with_text,
    zero_text_padding,
)
from flexsparse.choice.union import Unites
from flexsparse.engines.flex import attend_zeroed, query_factor
from flexsparse.stages.pooling import pool_rows, pool_tiles
from flexsparse.stages.queries import (
    Fill,
    KeptQueries,
    prune_scaled,
    restore_queries,
    video_queries,
)
from flexsparse.tiling import VideoTiling


def bsa_mask(
    kept: KeptQueries,
    k: Tensor,
    tiling: VideoTiling,
    *,
    kv: int | Unites,
    query_tiles: int = 1,
    text_lengths: Tensor | None = None,
) -> TileBlockMask:
    """The BlockMask in which each tile's kept queries see the key tiles that ``kv`` admits.

    Scores are the scaled dot products of the means of a tile's kept queries and of its keys, in
    fp32. A query block is the ``kept_rows`` rows that stand for a tile (or for ``query_tiles`` of
    them), a key block the tile.

    Args:
        kept: from :func:`prune_queries`.
        k: tile-major ``[B, Hkv, padded_tokens, D]``; query head h reads key head
            ``h // (H // Hkv)``. Padding is never read, and no gradient flows through the mask.
        tiling: the shape that the queries were pruned in.
        kv: which key tiles a query tile attends to; an int means TopK.
        query_tiles: so many query tiles, adjacent in memory, choose together, by the mean of their
            scores, weighted by kept queries (ours, as in :func:`flexsparse.vsa_mask`).
        text_lengths: where texts of the batch differ in length, int ``[B]``. Text takes no part in
            the choice: every query block has all of it, and its own see all tiles.

    Returns:
        A BlockMask, ``[B, H, rows of kept.q, padded_tokens]``.

    Raises:
        ValueError: ``kept`` of another tiling, k not tile-major, or more tiles than there are.

    >>> tiling = VideoTiling((8, 8, 8))
    >>> q = k = tiling.to_tiles(torch.randn(1, 2, tiling.tokens, 16))
    >>> bsa_mask(prune_queries(q, tiling), k, tiling, kv=TopK(2)).shape
    (1, 2, 256, 512)
    """
    kept.check_tiling(tiling)
    check_text_lengths(text_lengths, tiling, k)
    return _chosen(kept, k, tiling, kv, query_tiles, text_lengths=text_lengths).mask()


def bsa_tile_map(
    kept: KeptQueries,
    k: Tensor,
    tiling: VideoTiling,
    *,
    kv: int | Unites,
    query_tiles: int = 1,
) -> Tensor:
    """Who attends to whom in :func:`bsa_mask`: bool ``[B, H, n, n]``, query tiles by key tiles, of
    the video."""
    rule = as_rule(kv, tiling, "kv")
    bits = _choose(kept, k, tiling, rule, query_tiles)
    return of_tiles(unpack_bits(bits, tiling.num_tiles), query_tiles)


def bsa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tiling: VideoTiling,
    *,
    kv: int | Unites,
    keep: float = 0.5,
    window: tuple[int, int, int] | None = None,
    fill: Fill = "nearest",
    enable_gqa: bool = False,
    query_tiles: int = 1,
    text_lengths: Tensor | None = None,
    kernel_options: dict[str, Any] | None = None,
) -> Tensor:
    """BSA: prune queries, attend with those that stay over the admitted tiles, restore the rest.

    With ``keep=1`` and a rule that admits all tiles, such as ``Mass(1)``, this is dense attention.

    Args:
        q: tile-major ``[B, H, padded_tokens, D]``; what stands in padding has no effect. Mixed
            dtypes under autocast are cast to its own.
        k, v: tile-major ``[B, Hkv, padded_tokens, D]``, with fewer heads only if ``enable_gqa``.
        tiling: the shape.
        kv: which key tiles a query tile attends to; an int means TopK.
        keep, window: how queries are pruned, see :func:`prune_queries`.
        fill: where the output of a pruned query comes from, see :func:`restore_queries`.
        query_tiles: adjacent query tiles that choose together, see :func:`bsa_mask`.
        text_lengths: where texts of the batch differ in length, int ``[B]``. No query of the text
            is pruned.
        kernel_options: of attention on CUDA, see :func:`flexsparse.flex_attention`.

    Returns:
        ``[B, H, padded_tokens, D]``, zeros in padding. Differentiable in q (its kept rows), k and
        v; neither choice has a gradient.

    Raises:
        ValueError: raster tensors, mixed devices or dtypes, or a parameter out of range.

    >>> tiling = VideoTiling((8, 8, 8))
    >>> q = k = v = tiling.to_tiles(torch.randn(1, 2, tiling.tokens, 16))
    >>> bsa_attention(q, k, v, tiling, keep=0.5, window=(2, 2, 2), kv=Threshold(2)).shape
    torch.Size([1, 2, 512, 16])
    """
    q, k, v = as_autocast(q, k, v)
    for name, x in (("q", q), ("k", k), ("v", v)):
        tiling.check_tiled(x, name)
    check_alike(q=q, k=k, v=v)
    check_text_lengths(text_lengths, tiling, q)
    k, v = tiling.zero_each((k, v), text_lengths)  # once, for all that reads them
    if keep == 1:
        q = tiling.zero_padding(q, text_lengths)
    video = tiling.of_video
    factor = query_factor(q, k, v, kernel_options)
    kept = prune_scaled(video_rows(q, tiling), video, factor, keep=keep, window=window)
    chosen = _chosen(kept, k, tiling, kv, query_tiles, text_lengths=text_lengths, of_video=True)
    options: Any = dict(enable_gqa=enable_gqa, kernel_options=kernel_options)
    out = attend_zeroed(kept.q, k, v, chosen, factor=kept.factor, **options)
    out = restore_queries(out, kept, video, fill=fill)
    if not tiling.text:
        return out
    words = zero_text_padding(split(q, tiling)[1], tiling, text_lengths)
    chosen = text_to_all(tiling, text_lengths, q.device)
    words = attend_zeroed(words, k, v, chosen, **options)
    return join(out, zero_text_padding(words, tiling, text_lengths))


def block_scores(kept: KeptQueries, k: Tensor, tiling: VideoTiling, query_tiles: int) -> Tensor:
    """What query blocks choose by, in plain PyTorch: ``[B, H, ceil(n / query_tiles), n]``."""
    k_pooled = pool_tiles(video_rows(k.detach(), tiling), tiling.of_video)
    scores = coarse_scores(_pooled(kept), k_pooled)
    return pool_scores(scores, _counts(kept, query_tiles), query_tiles)


def _choose(
    kept: KeptQueries, k: Tensor, tiling: VideoTiling, rule: Rule, query_tiles: int
) -> Tensor:
    """The bits of the chosen tiles."""
    if kept.windows.tiling != tiling.of_video:
        kept.check_tiling(tiling)
    check_query_tiles(query_tiles, tiling)
    tiling.check_tiled(k, "k")
    if k.shape[1] == 0 or kept.q.shape[1] % k.shape[1]:
        raise ValueError(
            f"the queries have {kept.q.shape[1]} heads, k {k.shape[1]}: give it a divisor of them"
        )
    pooled = _pooled(kept), pool_tiles(video_rows(k.detach(), tiling), tiling.of_video)
    counts = _counts(kept, query_tiles)
    return choose_tiles(*pooled, rule, counts=counts, query_tiles=query_tiles)


def _chosen(
    kept: KeptQueries,
    k: Tensor,
    tiling: VideoTiling,
    kv: int | Unites,
    query_tiles: int,
    **options: Any,
) -> ChosenTiles:
    rule = as_rule(kv, tiling, "kv")
    bits = _choose(kept, k, tiling, rule, query_tiles)
    q_rows = None if kept.windows.keeps_all else kept.q_rows
    most = rule.bounds(tiling.num_tiles, query_tiles)[1]
    options |= dict(q_rows=q_rows, query_tiles=query_tiles)
    return with_text(bits, tiling, most, **options)


def _pooled(kept: KeptQueries) -> Tensor:
    """The mean of each tile's kept queries, in fp32."""
    if kept.pooled is not None:
        return kept.pooled
    tiling = kept.windows.tiling
    q = video_queries(kept).q.detach()
    if kept.windows.keeps_all:
        return pool_tiles(q, tiling.of_video)
    return pool_rows(q, kept.q_rows) * (kept.q_rows / _kept_count(kept))[:, None]


def _kept_count(kept: KeptQueries) -> Tensor:
    return kept.windows.tables(kept.q.device).quota.sum(-1)


def _counts(kept: KeptQueries, query_tiles: int) -> Tensor | None:
    """How many queries stay of each tile, where tiles that choose together may differ in it."""
    tiling = kept.windows.tiling.of_video
    if query_tiles == 1 or not tiling.is_ragged:
        return None
    return tiling.counts(kept.q.device) if kept.windows.keeps_all else _kept_count(kept).int()
