"""The coarse stage's choice: which tiles each query tile attends to."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
    n = scores.shape[-1]
    scores = scores.detach().float()
    bits = torch.where(scores == 0, 0.0, scores).view(torch.int32)  # -0.0 ties with 0.0
    bits = torch.where(scores.isnan(), 0x7FFFFFFF, bits)
    order = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()  # sorts as the floats do
    keys = (order << 32) | (n - 1 - torch.arange(n, device=scores.device))
    best = keys.topk(top_k, dim=-1, sorted=False).indices
    return best.sort(-1).values.int()


def tile_map(selected: Tensor, num_tiles: int) -> Tensor:
    """Who attends to whom: int ``[..., n, k]`` of chosen tiles to bool ``[..., n, num_tiles]``."""
    chosen = torch.zeros(
        (*selected.shape[:-1], num_tiles), dtype=torch.bool, device=selected.device
    )
    return chosen.scatter_(-1, selected.long(), True)
