"""Coarse pooling: one mean vector per tile."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flexsparse.tiling import VideoTiling

if sys.platform == "linux":  # where the package depends on triton
    from flexsparse.kernels import pool_tiles as kernels


def pool_tiles(x: Tensor, tiling: VideoTiling) -> Tensor:
    """Mean over the valid rows of each tile (VSA, arXiv 2505.13389, coarse stage).

    Args:
        x: tile-major ``[B, H, padded_tokens, D]``; padding is never read.
        tiling: the shape.

    Returns:
        ``[B, H, num_tiles, D]``, summed and returned in fp32 (fp64 for fp64). Differentiable.

    >>> tiling = VideoTiling((2, 4, 4), tile=(2, 2, 2))
    >>> pool_tiles(torch.ones(1, 1, tiling.padded_tokens, 16), tiling).shape
    torch.Size([1, 1, 4, 16])
    """
    return pool_each([x], tiling)[0]


def pool_each(xs: Sequence[Tensor], tiling: VideoTiling, *, kept: int = 3) -> Sequence[Tensor]:
    """:func:`pool_tiles` of up to three tensors, in one pass over memory if they are alike.

    For its backward a compiled graph of CUDA keeps the means of the first ``kept``, and computes
    those of the others again, in a pass of their own.
    """
    for x in xs:
        tiling.check_tiled(x)
    if any(x.shape != xs[0].shape for x in xs):  # q has more heads
        rest = pool_each(xs[1:], tiling, kept=max(kept - 1, 0))
        return [*pool_each(xs[:1], tiling, kept=kept), *rest]
    if xs[0].is_cuda:
        shape = list(tiling.video), list(tiling.tile), tiling.rows
        return kernels.pool_tiles(list(xs), *shape, kept)
    return pool_each_twin(xs, tiling)


def pool_rows(x: Tensor, rows: int) -> Tensor:
    """Means over ``rows`` rows each: ``[B, H, n * rows, D]`` to ``[B, H, n, D]``, fp32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.unflatten(-2, (-1, rows)).sum(-2, dtype=wide) / rows


def pool_each_twin(xs: Sequence[Tensor], tiling: VideoTiling) -> list[Tensor]:
    """:func:`pool_each` in plain PyTorch, on any device."""
    counts = tiling.counts(xs[0].device)[:, None]
    wide = torch.promote_types(xs[0].dtype, torch.float32)
    tiles = [x.unflatten(-2, (tiling.num_tiles, tiling.rows)) for x in tiling.zero_each(xs)]
    return [x.sum(-2, dtype=wide) / counts for x in tiles]


def pool_parts(x: Tensor, tiling: VideoTiling) -> Tensor:
    """Means over the tiles of the text's parts: of its rows, ``[B, H, text_tiles * rows, D]``,
    ``[B, H, m, D]`` in fp32 at least."""
    means, rows = [], tiling.rows
    for part in x[..., : tiling.text, :].split(tiling.parts, -2):
        tokens = part.shape[-2]
        tiles = F.pad(part, (0, 0, 0, -tokens % rows)).unflatten(-2, (-1, rows))
        counts = tokens - rows * torch.arange(tiles.shape[-3], device=x.device)
        counts = torch.where(counts < rows, counts, rows)  # no clamp, as in VideoTiling.counts
        sums = tiles.sum(-2, dtype=torch.promote_types(x.dtype, torch.float32))
        means.append(sums / counts[:, None])
    return torch.cat(means, -2)


def spread_parts(x: Tensor, tiling: VideoTiling) -> Tensor:
    """Each row of ``[B, H, m, D]``, as :func:`pool_parts` makes them, to all tokens of its tile:
    ``[B, H, text_tiles * rows, D]``, zeros in padding."""
    tiles = [-(-tokens // tiling.rows) for tokens in tiling.parts]
    spread = [
        part.repeat_interleave(tiling.rows, -2)[..., :tokens, :]
        for part, tokens in zip(x.split(tiles, -2), tiling.parts, strict=True)
    ]
    text = torch.cat(spread, -2)
    return F.pad(text, (0, 0, 0, tiling.text_tiles * tiling.rows - tiling.text))
