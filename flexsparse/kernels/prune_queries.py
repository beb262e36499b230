"""The queries of every tile that stay: cosine to the center, choice, gather and mean in one pass.

    similarity[i] = x[i] . x[c(i)] / (|x[i]| |x[c(i)]|)          c(i) the center of i's window
    rank[i]       = how many of i's window are less similar (ties: lower index), the center first
    out[slot]     = x[i] * factor, index[slot] = row of i        where rank[i] < keep * tokens(i)
    pooled        = mean of the tile's x[i] that stay
    dx[row]       = dout[slot] * factor where index[slot] = row, else 0

One program per tile, its tokens as [V, W], V of each of W windows: so a thread's rows are of one
window. Where they stand follows from the tile's number. Similarities are computed in fp32. Rows
that hold no token are never loaded, slots that stay empty are written as 0.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from flexsparse.derivatives import set_forward_mode, set_once
from flexsparse.kernels.geometry import center_rows, grid_of, window_boxes, window_rows
from flexsparse.kernels.launch import blocks_of, warps_of


@triton.jit
def quota_of(tokens, KEEP: tl.constexpr):
    """How many of a window's tokens stay, ``ceil(KEEP * tokens - 5e-10)`` as Windows.quota has it.

    In fp64, and without that difference, of which a compiler may round the product or not.
    """
    share = tokens.to(tl.float64) * tl.full([], KEEP, tl.float64)
    whole = share.to(tl.int32)
    return whole + (share > whole.to(tl.float64) + tl.full([], 5e-10, tl.float64)).to(tl.int32)


@triton.jit
def _slots(
    similarity, m_x, quota, SLOTS: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_W: tl.constexpr
):
    """The slot of every token that stays, -1 of one that goes: [V, W], as similarity and m_x."""
    o_v, o_w = tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_W)
    # the sum of one: without it the compiler divides anew in each layout of the pairs
    mine = tl.sum(tl.trans(similarity)[:, :, None], 2)
    other = tl.trans(mine)[:, :, None]  # pyright: ignore
    mine = mine[None, :, :]  # pyright: ignore
    before = (o_v[:, None] < o_v[None, :])[:, None, :]
    ahead = ((other < mine) | ((other == mine) & before)) & m_x[:, :, None]
    rank = tl.sum(ahead.to(tl.int32), 0)
    stays = tl.trans(m_x) & (rank < tl.trans(tl.minimum(quota, SLOTS)))
    number = tl.cumsum(stays.to(tl.int32), 1) - 1
    return tl.trans(tl.where(stays, o_w[:, None] * SLOTS + number, -1))


@triton.jit
def _prune_forward(
    x, index, out, pooled, stride_b, stride_h, stride_l, D,
    VIDEO_T: tl.constexpr, VIDEO_H: tl.constexpr, VIDEO_W: tl.constexpr,
    TILE_T: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    SIZE_T: tl.constexpr, SIZE_H: tl.constexpr, SIZE_W: tl.constexpr,
    KEEP: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr, KEPT: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i_n, i_h, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    tile = (i_b * tl.num_programs(1) + i_h) * tl.num_programs(0) + i_n
    o_i, o_v, o_w = tl.arange(0, BLOCK_V * BLOCK_W), tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_W)
    o_d = tl.arange(0, BLOCK_D)
    m_d = (o_d < D)[None, :]
    sides, first, extent = window_boxes(
        i_n, o_i % BLOCK_W,
        VIDEO_T, VIDEO_H, VIDEO_W, TILE_T, TILE_H, TILE_W, SIZE_T, SIZE_H, SIZE_W,
    )  # fmt: skip
    row = window_rows(sides, first, extent, o_i // BLOCK_W, SIZE_H, SIZE_W)
    p_x = x + i_b * stride_b + i_h * stride_h + i_n.to(tl.int64) * ROWS * stride_l
    p_row = p_x + row.to(tl.int64)[:, None] * stride_l + o_d[None, :]
    b_x = tl.load(p_row, mask=(row >= 0)[:, None] & m_d, other=0.0)

    sides, first, extent = window_boxes(
        i_n, o_w[None, :], VIDEO_T, VIDEO_H, VIDEO_W, TILE_T, TILE_H, TILE_W, SIZE_T, SIZE_H, SIZE_W
    )
    row = window_rows(sides, first, extent, o_v[:, None], SIZE_H, SIZE_W)
    at_center = row == center_rows(sides, first, extent)
    b_w = tl.reshape(b_x, [BLOCK_V, BLOCK_W, BLOCK_D]).to(tl.float32)
    b_c = tl.sum(tl.where(at_center[:, :, None], b_w, 0.0), 0)
    lengths = tl.sqrt(tl.sum(b_w * b_w, 2)) * tl.sqrt(tl.sum(b_c * b_c, 1))[None, :]
    dot = tl.sum(b_w * b_c[None, :, :], 2)  # pyright: ignore
    similarity = dot / tl.maximum(lengths, 1.1754943508222875e-38)
    similarity = tl.where(similarity == similarity, similarity, -2.0)  # NaN stays, and shows
    similarity = tl.where(at_center, -3.0, similarity)
    quota = quota_of(extent[0] * extent[1] * extent[2], KEEP)
    slot = _slots(similarity, row >= 0, quota, SLOTS, BLOCK_V, BLOCK_W)
    tl.store(index + tile * KEPT + slot, row, mask=slot >= 0)
    slot = tl.reshape(slot, [BLOCK_V * BLOCK_W])[:, None]
    p_out = out + tile * KEPT * D + slot * D + o_d[None, :]
    factor = tl.full([], FACTOR, tl.float32)  # a scalar would be cast to x's dtype
    tl.store(p_out, b_x * factor, mask=(slot >= 0) & m_d)

    WINDOWS: tl.constexpr = (TILE_T // SIZE_T) * (TILE_H // SIZE_H) * (TILE_W // SIZE_W)
    RAGGED: tl.constexpr = VIDEO_T % TILE_T + VIDEO_H % TILE_H + VIDEO_W % TILE_W
    if WINDOWS * SLOTS < KEPT or RAGGED > 0:
        o_s = tl.arange(0, BLOCK_S)
        _, _, extent = window_boxes(
            i_n, o_s // SLOTS,
            VIDEO_T, VIDEO_H, VIDEO_W, TILE_T, TILE_H, TILE_W, SIZE_T, SIZE_H, SIZE_W,
        )  # fmt: skip
        quota = quota_of(extent[0] * extent[1] * extent[2], KEEP)
        hole = (o_s < KEPT) & (o_s % SLOTS >= quota)
        count = KEPT - tl.sum(hole.to(tl.int32), 0)
        tl.store(index + tile * KEPT + o_s, tl.full([BLOCK_S], -1, tl.int32), mask=hole)
        zeros = tl.zeros([BLOCK_S, BLOCK_D], dtype=out.dtype.element_ty)
        p_hole = out + tile * KEPT * D + o_s[:, None] * D + o_d[None, :]
        tl.store(p_hole, zeros, mask=hole[:, None] & m_d)
    else:
        count = KEPT

    b_kept = tl.where(slot >= 0, b_x, 0.0).to(pooled.dtype.element_ty)
    tl.store(pooled + tile * D + o_d, tl.sum(b_kept, 0) / count, mask=o_d < D)


@triton.jit
def _prune_backward(
    dout, index, dx, D,
    ROWS: tl.constexpr, KEPT: tl.constexpr, FACTOR: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i_n, i_bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tile = i_bh * tl.num_programs(0) + i_n
    o_d, o_r, o_s = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_S)
    m_d = o_d < D
    row = tl.load(index + tile * KEPT + o_s, mask=o_s < KEPT, other=-1)
    hit = row[None, :] == o_r[:, None]
    slot = tl.sum(tl.where(hit, o_s[None, :] + 1, 0), 1) - 1  # pyright: ignore
    p_g = dout + (tile * KEPT + slot)[:, None] * D + o_d[None, :]
    b_g = tl.load(p_g, mask=(slot >= 0)[:, None] & m_d[None, :], other=0.0)
    p_dx = dx + (tile * ROWS + o_r)[:, None] * D + o_d[None, :]
    b_g = b_g * tl.full([], FACTOR, tl.float32)
    tl.store(p_dx, b_g, mask=(o_r < ROWS)[:, None] & m_d[None, :])


@triton_op("flexsparse::prune_queries", mutates_args={})
def prune_queries(
    x: Tensor,
    video: list[int],
    tile: list[int],
    rows: int,
    window: list[int],
    keep: float,
    slots: int,
    kept: int,
    factor: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep ``ceil(keep * tokens)`` queries of every window, the least similar to its center.

    x ``[B, H, n * rows, D]`` of any strides with D contiguous, tile-major for the video; windows of
    ``window`` (T, H, W) in tiles of ``tile``, each with ``slots`` of the ``kept`` rows. Returns
    ``[B, H, n * kept, D]``, times ``factor``, differentiable in x; index int32 ``[B, H, n, kept]``,
    the tile's row of each, -1 in empty slots; and the mean of each tile's in x, ``[B, H, n, D]`` in
    fp32 (fp64 for fp64).
    """
    B, H, L, D = x.shape
    n = L // rows
    x = x if x.stride(3) == 1 else x.contiguous()
    out = x.new_empty((B, H, n * kept, D))
    index = x.new_empty((B, H, n, kept), dtype=torch.int32)
    pooled = x.new_empty((B, H, n, D), dtype=torch.promote_types(x.dtype, torch.float32))
    V = math.prod(window)
    W = math.prod(tile) // V
    wrap_triton(_prune_forward)[(n, H, B)](
        x, index, out, pooled, x.stride(0), x.stride(1), x.stride(2), D,
        KEEP=keep, ROWS=rows, SLOTS=slots, KEPT=kept, FACTOR=factor, **grid_of(video, tile, window),
        **blocks_of(V=V, W=W, S=kept, D=D), num_warps=warps_of(V, W, D),
    )  # fmt: skip
    return out, index, pooled


@triton_op("flexsparse::prune_queries_backward", mutates_args={})
def prune_queries_backward(dout: Tensor, index: Tensor, rows: int, factor: float = 1.0) -> Tensor:
    """Gradient of :func:`prune_queries` in x: ``[B, H, n * rows, D]``."""
    B, H, n, kept = index.shape
    D = dout.shape[3]
    dx = dout.new_empty((B, H, n * rows, D))
    wrap_triton(_prune_backward)[(n, B * H)](
        dout.contiguous(), index, dx, D, ROWS=rows, KEPT=kept, FACTOR=factor,
        **blocks_of(R=rows, S=kept, D=D), num_warps=warps_of(rows, D),
    )  # fmt: skip
    return dx


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, index, pooled = output
    ctx.rows, ctx.factor = inputs[3], inputs[8]
    ctx.mark_non_differentiable(index, pooled)
    ctx.save_for_backward(index)


def _backward(ctx: Any, dout: Tensor, *_: Any) -> tuple:
    (index,) = ctx.saved_tensors
    return prune_queries_backward(dout, index, ctx.rows, ctx.factor), *[None] * 8


prune_queries.register_autograd(_backward, setup_context=_save)
set_forward_mode(prune_queries)
set_once(prune_queries_backward)
