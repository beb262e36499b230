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


def pooled_over_blocks(scores: Tensor, video: Grid, tile: Grid, query_tiles: int) -> Tensor:
    """Every tile's row becomes the mean row of its block of ``query_tiles`` consecutive tiles,
    weighted by their tokens: ``[B, H, n, n]``."""
    tokens = torch.bincount(tile_of_token(video, tile)).to(scores)
    block = torch.arange(len(tokens), device=scores.device) // query_tiles
    together = (block[:, None] == block).to(scores.dtype) * tokens
    return (together / together.sum(-1, keepdim=True)) @ scores


def kept_scores(
    q: Tensor, k: Tensor, kept: Tensor, video: Grid, tile: Grid, query_tiles: int = 1
) -> Tensor:
    """BSA's scores: every tile's row is that of the mean over the kept queries of its block of
    ``query_tiles`` consecutive tiles, ``[B, H, n, n]``.

    Args:
        q, k: raster ``[B, H, tokens, D]``.
        kept: bool ``[B, H, tokens]``.
    """
    of_token = tile_of_token(video, tile).to(q.device)
    n = int(of_token.max()) + 1
    block = torch.arange(n, device=q.device) // query_tiles
    member = (of_token // query_tiles == block[:, None]) & kept.unsqueeze(-2)  # [B, H, n, tokens]
    member = member.to(q.dtype)
    means = member @ q / member.sum(-1, keepdim=True)
    return means @ pool(k, video, tile).transpose(-1, -2) / math.sqrt(q.shape[-1])


def top_k_map(scores: Tensor, top_k: int) -> Tensor:
    """The ``top_k`` largest of every row, ties to the lower index: bool, as ``scores``."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order[..., :top_k], True)


def neighbourhood(video: Grid, tile: Grid, window: Grid | None, first_frames: int = 0) -> Tensor:
    """Tiles at most ``window // 2`` away from each along every axis (None: no such tiles), and
    those that hold one of the first frames: bool ``[n, n]``."""
    grid = [math.ceil(length / size) for length, size in zip(video, tile)]
    at = torch.stack(torch.meshgrid(*map(torch.arange, grid), indexing="ij"), -1).flatten(0, 2)
    away = (at[:, None] - at).abs()
    near = (away <= torch.tensor(window or (-1, -1, -1)) // 2).all(-1)
    return near | (at[:, 0] * tile[0] < first_frames)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention over the pairs where bool ``mask [B, H, tokens, tokens]`` is set."""
    s = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf)
    return s.softmax(-1) @ v


def with_text(mask: Tensor, text: int, text_lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Who sees whom among the video's tokens, ``[B, H, V, V]``, and the text's, which see and are
    seen by all: ``[B, H, V + text, V + text]``. And which tokens there are, ``[B, 1, V + text,
    1]``."""
    video = mask.shape[-1]
    mask = torch.nn.functional.pad(mask, (0, text, 0, text), value=True)
    token = torch.arange(video + text, device=mask.device)
    ends = torch.tensor([text], device=mask.device) if text_lengths is None else text_lengths
    there = (token < video + ends[:, None])[:, None]
    return mask & there[..., None, :], there[..., None]


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
    query_tiles: int = 1,
    text_lengths: Tensor | None = None,
    parts: tuple[int, ...] = (),
    rows: int = 64,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """What :func:`flexsparse.vsa_attention` must compute, in raster order and fp64.

    Args:
        q, k, v, gate_coarse, gate_fine: raster ``[B, H, tokens, D]``; what comes after the video's
            tokens is text.
        video, tile: ``(T, H, W)`` in tokens.
        top_k: key tiles per query tile.
        tile_map: bool ``[B, H, n, n]``, a choice to use in place of the oracle's own, since a
            choice between nearly equal scores depends on rounding.
        query_tiles: consecutive query tiles that choose together.
        text_lengths: int ``[B]``, the tokens of text that there are of each.
        parts, rows: tokens of each part of the text that the coarse stage has tiles of, of so many
            tokens each.
        dtype: what to compute in. In a lower one this is plain PyTorch, whose error to fp64 is
            the measure of ours.

    Returns:
        ``[B, H, tokens, D]`` of ``dtype``, differentiable.
    """
    q, k, v = (x.to(dtype) for x in (q, k, v))
    of_token = tile_of_token(video, tile).to(q.device)
    tokens = len(of_token)
    coarse_scores = scores(q[..., :tokens, :], k[..., :tokens, :], video, tile)
    if tile_map is None:
        chosen_by = pooled_over_blocks(coarse_scores.detach(), video, tile, query_tiles)
        tile_map = top_k_map(chosen_by, top_k)
    mask = tile_map[..., of_token, :][..., of_token]
    mask, there = with_text(mask, q.shape[-2] - tokens, text_lengths)
    out = attention(q, k, v, mask)
    if gate_fine is not None:
        out = out * gate_fine.to(dtype)
    if gate_coarse is not None and parts:
        first = int(of_token.max()) + 1
        for part in parts:
            tiles = first + torch.arange(part, device=q.device) // rows
            of_token, first = torch.cat((of_token, tiles)), int(tiles.max()) + 1
        same = of_token == torch.arange(first, device=q.device)[:, None]
        mean = same.to(dtype) / same.sum(-1, keepdim=True)
        everyone = torch.ones(1, 1, first, first, dtype=torch.bool, device=q.device)
        coarse = attention(mean @ q, mean @ k, mean @ v, everyone)
        out = out + coarse[..., of_token, :] * gate_coarse.to(dtype)
    elif gate_coarse is not None:
        coarse = coarse_scores.softmax(-1) @ pool(v[..., :tokens, :], video, tile)
        gated = coarse[..., of_token, :] * gate_coarse[..., :tokens, :].to(dtype)
        out = torch.cat((out[..., :tokens, :] + gated, out[..., tokens:, :]), -2)
    return out.where(there, 0)


def windows_of_tokens(video: Grid, tile: Grid, window: Grid) -> tuple[Tensor, Tensor]:
    """The window of every token in raster order, and that window's center: int64 ``[tokens]``.

    A window is named by its first token. Its center is at ``size // 2`` along each axis of that
    part of it that lies in the video.
    """
    at = torch.stack(torch.meshgrid(*map(torch.arange, video), indexing="ij"), -1).flatten(0, 2)
    length, tile_size, size = (torch.tensor(x) for x in (video, tile, window))
    in_tile = at % tile_size
    first = at - in_tile + in_tile // size * size
    end = torch.minimum(torch.minimum(first + size, at - in_tile + tile_size), length)
    stride = torch.tensor([video[1] * video[2], video[2], 1])
    return (first * stride).sum(-1), ((first + (end - first) // 2) * stride).sum(-1)


def kept_queries(q: Tensor, video: Grid, tile: Grid, window: Grid, keep: float) -> Tensor:
    """Which queries BSA keeps, ``ceil(keep * size)`` of each window: bool ``[B, H, tokens]``."""
    of_token, center = (x.to(q.device) for x in windows_of_tokens(video, tile, window))
    c = q[..., center, :]
    similarity = torch.nn.functional.cosine_similarity(q, c, dim=-1, eps=0).nan_to_num(0)
    index = torch.arange(len(center), device=q.device)
    similarity = similarity.masked_fill(index == center, -math.inf)
    same = of_token[:, None] == of_token
    a, b = similarity.unsqueeze(-1), similarity.unsqueeze(-2)
    before = (b < a) | ((b == a) & (index < index[:, None]))
    number = torch.tensor([quota(keep, size) for size in same.sum(-1).tolist()])
    return (before & same).sum(-1) < number.to(q.device)


def quota(keep: float, size: int) -> int:
    """How many of ``size`` queries stay."""
    return math.ceil(round(keep * size, 9))


def sources(kept: Tensor, video: Grid, tile: Grid, window: Grid, fill: str) -> Tensor:
    """The token whose output each token takes: int64 ``[B, H, tokens]``."""
    of_token, center = (x.to(kept.device) for x in windows_of_tokens(video, tile, window))
    index = torch.arange(len(center), device=kept.device)
    if fill == "center":
        return torch.where(kept, index, center)
    at = torch.stack(torch.meshgrid(*map(torch.arange, video), indexing="ij"), -1).flatten(0, 2)
    distance = (at[:, None] - at).square().sum(-1).to(kept.device)
    distance = distance.masked_fill(of_token[:, None] != of_token, 1 << 30)
    return (distance * len(index) + index).where(kept.unsqueeze(-2), 1 << 60).argmin(-1)


def bsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    video: Grid,
    tile: Grid,
    *,
    keep: float,
    window: Grid,
    tile_map: Tensor,
    kept: Tensor | None = None,
    fill: str = "nearest",
    text_lengths: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """What :func:`flexsparse.bsa_attention` must compute, in raster order and fp64.

    Args:
        q, k, v: raster ``[B, H, tokens, D]``; what comes after the video's tokens is text.
        video, tile, window: ``(T, H, W)`` in tokens.
        keep: fraction of each window's queries.
        tile_map: bool ``[B, H, n, n]``, the key tiles of every query tile.
        kept: bool ``[B, H, tokens of the video]``, a choice to use in place of the oracle's own.
        text_lengths: int ``[B]``, the tokens of text that there are of each.
        fill, dtype: as there, and as in :func:`vsa`.

    Returns:
        ``[B, H, tokens, D]`` of ``dtype``, differentiable.
    """
    q, k, v = (x.to(dtype) for x in (q, k, v))
    of_token = tile_of_token(video, tile).to(q.device)
    tokens = len(of_token)
    if kept is None:
        kept = kept_queries(q[..., :tokens, :].detach(), video, tile, window, keep)
    mask = tile_map[..., of_token, :][..., of_token]
    mask, there = with_text(mask, q.shape[-2] - tokens, text_lengths)
    out = attention(q, k, v, mask)
    source = sources(kept, video, tile, window, fill).unsqueeze(-1)
    of_video = out[..., :tokens, :]
    of_video = of_video.gather(-2, source.expand_as(of_video))
    return torch.cat((of_video, out[..., tokens:, :]), -2).where(there, 0)
