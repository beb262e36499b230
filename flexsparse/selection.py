"""The coarse stage's choice: which tiles each query tile attends to."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flexsparse.checks import can_be_read

if TYPE_CHECKING:
    from flexsparse.kv_rules import Rule
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
            CPU outside of torch.compile (on a GPU looking would mean
            to wait for it; there +inf is a best score like any other).
    """
    q_pooled, k_pooled, n = q_pooled.detach(), k_pooled.detach(), k_pooled.shape[-2]
    if k_pooled.shape[1] == 0 or q_pooled.shape[1] % k_pooled.shape[1]:
        heads = q_pooled.shape[1], k_pooled.shape[1]
        raise ValueError(f"q has {heads[0]} heads, k {heads[1]}: give k a divisor of q's")
    fused = rule.fused(n) if q_pooled.is_cuda else None
    if fused is not None:
        if fused.tensor is not None and not fused.tensor.is_cuda:
            raise ValueError(f"{rule} holds a tensor on a CPU, q is on {q_pooled.device}: move it")
        bounds = rule.bounds(n)
        return kernels.select_tiles(q_pooled, k_pooled, counts, *fused, *bounds, query_tiles)
    scores = pool_scores(coarse_scores(q_pooled, k_pooled), counts, query_tiles)
    if can_be_read(scores):
        _refuse_infinities(scores)
    return pack_bits(rule(scores))


def _refuse_infinities(scores: Tensor) -> None:
    found = scores.isinf().nonzero()
    if len(found):
        b, h, i, j = found[0].tolist()
        raise ValueError(
            f"{len(found)} of {scores.numel()} scores between tiles are infinite, the first in "
            f"batch {b}, head {h}, of query block {i} to key tile {j}: queries and keys that large "
            "overflow fp32; normalise them, or scale them down"
        )


def pack_bits(tile_map: Tensor) -> Tensor:
    """A tile map, a bit each: bool ``[..., n]`` to int32 ``[..., ceil(n / 32)]``, lowest bit first.

    >>> pack_bits(torch.tensor([True, False, True]))
    tensor([5], dtype=torch.int32)
    """
    words = F.pad(tile_map.int(), (0, -tile_map.shape[-1] % 32)).unflatten(-1, (-1, 32))
    shift = torch.arange(32, dtype=torch.int32, device=tile_map.device)
    return (words << shift).sum(-1, dtype=torch.int32)


def unpack_bits(bits: Tensor, n: int) -> Tensor:
    """Undoes :func:`pack_bits`: bool ``[..., n]``."""
    shift = torch.arange(32, dtype=torch.int32, device=bits.device)
    return ((bits.unsqueeze(-1) >> shift) & 1).flatten(-2)[..., :n].bool()


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


def select_top_k(scores: Tensor, top_k: int) -> Tensor:
    """The ``top_k`` best tiles of each row, in ascending order: int32 ``[..., top_k]``.

    Of equal scores the lower index wins, and NaN counts as the best, so that it stays visible. The
    choice is made by topk on distinct integer keys; everything after it is exact integer work, so
    a checkpoint policy that saves topk's result makes a recomputed layer choose the same tiles.

    Args:
        scores: fp32 ``[..., n]``; no gradient flows through the choice.
        top_k: 1 to n.

    >>> select_top_k(torch.tensor([0.5, 2.0, 0.5, -1.0]), 2)
    tensor([0, 1], dtype=torch.int32)
    """
    best = sort_keys(scores).topk(top_k, dim=-1, sorted=False).indices
    return best.sort(-1).values.int()


def select_admitted(scores: Tensor, admitted: Tensor, least: int | Tensor, most: int) -> Selection:
    """The best ``most`` admitted tiles of each row, and the best ``least`` tiles in any case.

    Ties, NaN and recomputation as in :func:`select_top_k`: which tiles are admitted goes through
    topk as well, as a bit of the keys.

    Args:
        scores: fp32 ``[..., n]``.
        admitted: bool ``[..., n]``; no score outside is better than one inside.
        least, most: 1 to n; ``least`` may be a tensor of one number.

    >>> scores = torch.tensor([0.5, 2.0, 0.5, -1.0])
    >>> tiles, counts = select_admitted(scores, scores > 1, least=1, most=3)
    >>> tiles, counts
    (tensor([1, 0, 0], dtype=torch.int32), tensor(1, dtype=torch.int32))
    """
    n = scores.shape[-1]
    keys = sort_keys(scores) + admitted.long() * _ADMITTED
    best = keys.topk(most, dim=-1, sorted=True)
    chosen = (best.values >= _ADMITTED // 2) | (torch.arange(most, device=scores.device) < least)
    tiles = torch.where(chosen, best.indices, n).sort(-1).values
    return Selection(torch.where(tiles < n, tiles, 0).int(), chosen.sum(-1, dtype=torch.int32))


class Selection(NamedTuple):
    """A choice with as many tiles as each row wants: ``tiles[..., :counts]``, ascending."""

    tiles: Tensor  # int32 [..., most]; past a row's count, 0
    counts: Tensor  # int32 [...]


_ADMITTED = 1 << 62  # keys are between -half and half of this


def sort_keys(scores: Tensor) -> Tensor:
    """Distinct int64 keys that sort as ``(score, lower index first)`` does; NaN is the largest."""
    n = scores.shape[-1]
    scores = scores.detach().float()
    bits = torch.where(scores == 0, 0.0, scores).view(torch.int32)  # -0.0 ties with 0.0
    bits = torch.where(scores.isnan(), 0x7FFFFFFF, bits)
    order = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()  # sorts as the floats do
    return (order << 30) | (n - 1 - torch.arange(n, device=scores.device))


def tile_map(selected: Tensor, num_tiles: int) -> Tensor:
    """Who attends to whom: int ``[..., n, k]`` of chosen tiles to bool ``[..., n, num_tiles]``."""
    chosen = torch.zeros(
        (*selected.shape[:-1], num_tiles), dtype=torch.bool, device=selected.device
    )
    return chosen.scatter_(-1, selected.long(), True)
