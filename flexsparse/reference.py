"""The oracle: dense, in raster order, in fp64; it has no tiling, padding or BlockMask of ours."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Grid = tuple[int, int, int]


def tile_of_token(video: Grid, tile: Grid) -> Tensor:
    """The tile of every token in raster order: int64 ``[tokens]``; tiles count in raster order."""
    index = torch.zeros(video, dtype=torch.int64)
    for axis, (length, size) in enumerate(zip(video, tile)):
        along = torch.arange(length).div(size, rounding_mode="floor")
        shape = [1, 1, 1]
        shape[axis] = length
        index = index * math.ceil(length / size) + along.view(shape)
    return index.flatten()


def pool(x: Tensor, video: Grid, tile: Grid) -> Tensor:
    """Means over tiles: raster ``[B, H, tokens, D]`` to ``[B, H, n, D]``."""
    of_token = tile_of_token(video, tile).to(x.device)
    member = torch.nn.functional.one_hot(of_token).to(x.dtype)
    return member.T @ x / member.sum(0)[:, None]


def scores(q: Tensor, k: Tensor, video: Grid, tile: Grid) -> Tensor:
    """Coarse scores ``Qc Kc^T / sqrt(D)``: ``[B, H, n, n]``."""
    qc, kc = (pool(x, video, tile) for x in (q, k))
    return qc @ kc.transpose(-1, -2) / math.sqrt(q.shape[-1])


def top_k_map(scores: Tensor, top_k: int) -> Tensor:
    """The ``top_k`` largest of every row, ties to the lower index: bool, as ``scores``."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order[..., :top_k], True)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention over the pairs where bool ``mask [B, H, tokens, tokens]`` is set."""
    s = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf)
    return s.softmax(-1) @ v


def vsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    video: Grid,
    tile: Grid,
    *,
    top_k: int,
    gate_coarse: Tensor | None = None,
    gate_fine: Tensor | None = None,
    tile_map: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """What :func:`flexsparse.vsa_attention` must compute, in raster order and fp64.

    Args:
        q, k, v, gate_coarse, gate_fine: raster ``[B, H, tokens, D]``.
        video, tile: ``(T, H, W)`` in tokens.
        top_k: key tiles per query tile.
        tile_map: bool ``[B, H, n, n]``, a choice to use in place of the oracle's own, since a
            choice between nearly equal scores depends on rounding.
        dtype: what to compute in. In a lower one this is plain PyTorch, whose error to fp64 is
            the measure of ours.

    Returns:
        ``[B, H, tokens, D]`` of ``dtype``, differentiable.
    """
    q, k, v = (x.to(dtype) for x in (q, k, v))
    of_token = tile_of_token(video, tile).to(q.device)
    coarse_scores = scores(q, k, video, tile)
    if tile_map is None:
        tile_map = top_k_map(coarse_scores.detach(), top_k)
    out = attention(q, k, v, tile_map[..., of_token, :][..., of_token])
    if gate_fine is not None:
        out = out * gate_fine.to(dtype)
    if gate_coarse is not None:
        coarse = coarse_scores.softmax(-1) @ pool(v, video, tile)
        out = out + coarse[..., of_token, :] * gate_coarse.to(dtype)
    return out
