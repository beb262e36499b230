"""From pooled queries and keys to the tiles that each query tile attends to."""

from __future__ import annotations

import math
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from flexsparse.checks import can_be_read
from flexsparse.choice.places import OnGrid
from flexsparse.choice.rules import Rule
from flexsparse.choice.selection import pack_bits

if sys.platform == "linux":  # where the package depends on triton
    from flexsparse.kernels import select_tiles as kernels


def coarse_scores(q_pooled: Tensor, k_pooled: Tensor, scale: float | None = None) -> Tensor:
    """Scores between tiles, ``q k^T / sqrt(D)`` (VSA, arXiv 2505.13389, coarse stage).

    Args:
        q_pooled, k_pooled: ``[B, H, n, D]`` in fp32, as pool_tiles returns them: scores in bf16
            tie, and ties favour early tiles. With fewer key heads than query heads, a group of
            query heads reads one key head (GQA).
        scale: default ``1 / sqrt(D)``.

    Returns:
        ``[B, H, n, n]``, query tiles by key tiles.
    """
    scale = 1 / math.sqrt(q_pooled.shape[-1]) if scale is None else scale
    groups = q_pooled.shape[1] // k_pooled.shape[1]
    if groups > 1:
        k_pooled = k_pooled.repeat_interleave(groups, 1)
    with torch.autocast(q_pooled.device.type, enabled=False):  # it would round scores to bf16
        return torch.matmul(q_pooled * scale, k_pooled.transpose(-1, -2))


def choose_tiles(
    q_pooled: Tensor,
    k_pooled: Tensor,
    rule: Rule,
    *,
    counts: Tensor | None = None,
    query_tiles: int = 1,
) -> Tensor:
    """The key tiles that each block of query tiles attends to, as :func:`pack_bits` has them.

    On CUDA one kernel makes scores and choice of the rules that it knows. No gradient flows.

    Args:
        q_pooled: ``[B, H, n, D]``, as pool_tiles returns them.
        k_pooled: ``[B, Hkv, n, D]``; query head h reads key head ``h // (H // Hkv)``.
        rule: which tiles a row admits.
        counts: int32 ``[n]``, queries that count in each tile where tiles differ, see
            :func:`pool_scores`.
        query_tiles: adjacent tiles that choose together.

    Returns:
        int32 ``[B, H, ceil(n / query_tiles), ceil(n / 32)]``.

    Raises:
        ValueError: heads that do not fit, a rule's tensor on another device; infinite scores, on a
            CPU outside of torch.compile (on a GPU looking would mean to wait for it; there +inf is
            a best score like any other).
    """
    q_pooled, k_pooled = q_pooled.detach(), k_pooled.detach()
    if k_pooled.shape[1] == 0 or q_pooled.shape[1] % k_pooled.shape[1]:
        heads = q_pooled.shape[1], k_pooled.shape[1]
        raise ValueError(f"q has {heads[0]} heads, k {heads[1]}: give k a divisor of q's")
    if not isinstance(rule, OnGrid):
        return _choose(q_pooled, k_pooled, rule, counts, query_tiles)
    always = rule.always(query_tiles, q_pooled.device)
    if not rule.rules and always is not None:
        return always.expand(*q_pooled.shape[:2], -1, -1).contiguous()
    first, *others = rule.rules
    bits = _choose(q_pooled, k_pooled, first, counts, query_tiles, always)
    for other in others:
        bits = bits | _choose(q_pooled, k_pooled, other, counts, query_tiles)
    return bits


def _choose(
    q_pooled: Tensor,
    k_pooled: Tensor,
    rule: Rule,
    counts: Tensor | None,
    query_tiles: int,
    always: Tensor | None = None,
) -> Tensor:
    """The bits of one rule, and those of ``always``, the same for all batches and heads."""
    n = k_pooled.shape[-2]
    fused = rule.fused(n) if q_pooled.is_cuda else None
    if fused is not None:
        if fused.tensor is not None and not fused.tensor.is_cuda:
            raise ValueError(f"{rule} holds a tensor on a CPU, q is on {q_pooled.device}: move it")
        bounds = rule.bounds(n)
        return kernels.select_tiles(
            q_pooled, k_pooled, counts, *fused, *bounds, query_tiles, always
        )
    scores = pool_scores(coarse_scores(q_pooled, k_pooled), counts, query_tiles)
    if can_be_read(scores):
        _refuse_infinities(scores)
    bits = pack_bits(rule(scores))
    return bits if always is None else bits | always


def _refuse_infinities(scores: Tensor) -> None:
    found = scores.isinf().nonzero()
    if len(found):
        b, h, i, j = found[0].tolist()
        raise ValueError(
            f"{len(found)} of {scores.numel()} scores between tiles are infinite, the first in "
            f"batch {b}, head {h}, of query block {i} to key tile {j}: queries and keys that large "
            "overflow fp32; normalise them, or scale them down"
        )


def pool_scores(scores: Tensor, counts: Tensor | None, query_tiles: int) -> Tensor:
    """Scores of query blocks that are ``query_tiles`` adjacent tiles: they choose together (ours).

    The mean of their scores, weighted by the queries in each: scores are linear in the mean query,
    so that this is the score of the mean over all queries of the block.

    Args:
        scores: ``[B, H, n, n]``, query tiles by key tiles.
        counts: int ``[n]``, queries that count in each tile; None where all have equally many.
        query_tiles: at least 1; the last block has fewer where n is not a multiple.

    Returns:
        ``[B, H, ceil(n / query_tiles), n]``.

    >>> pool_scores(torch.tensor([[1.0, 0], [4, 3]])[None, None], torch.tensor([1, 2]), 2)
    tensor([[[[3., 2.]]]])
    """
    if query_tiles == 1:
        return scores
    if counts is None:
        counts = torch.ones(scores.shape[-2], dtype=torch.int32, device=scores.device)
    pad = -scores.shape[-2] % query_tiles
    sums = F.pad(scores * counts[:, None], (0, 0, 0, pad)).unflatten(-2, (-1, query_tiles)).sum(-2)
    return sums / F.pad(counts, (0, pad)).view(-1, query_tiles).sum(-1)[:, None]


def of_tiles(of_blocks: Tensor, query_tiles: int) -> Tensor:
    """The tile map of a map of blocks: bool ``[B, H, ceil(n / query_tiles), n]`` to ``[B, H, n,
    n]``."""
    if query_tiles == 1:
        return of_blocks
    return of_blocks.repeat_interleave(query_tiles, -2)[..., : of_blocks.shape[-1], :]
