"""The queries of every tile that stay: cosine to the center, choice, gather and mean in one pass.

    similarity[i] = x[i] . x[c(i)] / (|x[i]| |x[c(i)]|)          c(i) the center of i's window
    rank[i]       = how many of i's window are less similar (ties: lower index), the center first
    out[slot]     = x[i], index[slot] = row of i                 where rank[i] < keep * tokens(i)
    pooled        = mean of the tile's out
    dx[row]       = dout[slot] where index[slot] = row, else 0

One program per tile, its tokens as V of each of W windows: where they stand follows from the tile's
number. Similarities are computed in fp32. Rows that hold no token are never loaded, slots that stay
empty are written as 0.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from flexsparse.kernels.geometry import center_rows, grid_of, window_boxes, window_rows


@triton.jit
def quota_of(tokens, KEEP: tl.constexpr):
    """How many of a window's tokens stay, ``ceil(KEEP * tokens - 5e-10)`` as Windows.quota has it.

    In fp64, and without that difference, of which a compiler may round the product or not.
    """
    share = tokens.to(tl.float64) * tl.full([], KEEP, tl.float64)
    whole = share.to(tl.int32)
    return whole + (share > whole.to(tl.float64) + tl.full([], 5e-10, tl.float64)).to(tl.int32)


@triton.jit
def _prune_forward(
    x, index, out, pooled, stride_b, stride_h, stride_l, D,
    VIDEO_T: tl.constexpr, VIDEO_H: tl.constexpr, VIDEO_W: tl.constexpr,
    TILE_T: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    SIZE_T: tl.constexpr, SIZE_H: tl.constexpr, SIZE_W: tl.constexpr,
    KEEP: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr, KEPT: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i_n, i_h, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    tile = (i_b * tl.num_programs(1) + i_h) * tl.num_programs(0) + i_n
    o_w, o_v, o_d = tl.arange(0, BLOCK_W), tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_D)
    m_d = o_d < D
    sides, first, extent = window_boxes(
        i_n, o_w[:, None], VIDEO_T, VIDEO_H, VIDEO_W, TILE_T, TILE_H, TILE_W, SIZE_T, SIZE_H, SIZE_W
    )
    tokens = extent[0] * extent[1] * extent[2]
    center = center_rows(sides, first, extent)
    row = window_rows(sides, first, extent, o_v[None, :], SIZE_H, SIZE_W)
    m_x = row >= 0
    p_x = x + i_b * stride_b + i_h * stride_h + i_n.to(tl.int64) * ROWS * stride_l
    p_row = p_x + row.to(tl.int64)[:, :, None] * stride_l + o_d[None, None, :]
    b_x = tl.load(p_row, mask=m_x[:, :, None] & m_d[None, None, :], other=0.0)

    b_w = b_x.to(tl.float32)
    b_c = tl.sum(tl.where((row == center)[:, :, None], b_w, 0.0), 1)
    lengths = tl.sqrt(tl.sum(b_w * b_w, 2)) * tl.sqrt(tl.sum(b_c * b_c, 1))[:, None]
    dot = tl.sum(b_w * b_c[:, None, :], 2)  # pyright: ignore
    similarity = dot / tl.maximum(lengths, 1.1754943508222875e-38)
    similarity = tl.where(similarity == similarity, similarity, -2.0)  # NaN stays, and shows
    similarity = tl.where(row == center, -3.0, similarity)

    # the sum of one: without it the compiler divides anew in each layout of the pairs
    similarity = tl.sum(similarity[:, :, None], 2)
    mine, other = similarity[None, :, :], tl.trans(similarity)[:, :, None]  # pyright: ignore
    before = (o_v[:, None] < o_v[None, :])[:, None, :]
    m_j = tl.trans(m_x)[:, :, None]
    ahead = ((other < mine) | ((other == mine) & before)) & m_j
    rank = tl.sum(ahead.to(tl.int32), 0)
    stays = m_x & (rank < tl.minimum(quota_of(tokens, KEEP), SLOTS))
    number = tl.cumsum(stays.to(tl.int32), 1) - 1
    slot = tl.where(stays, o_w[:, None] * SLOTS + number, -1)
    tl.store(index + tile * KEPT + slot, row, mask=slot >= 0)
    m_out = (slot >= 0)[:, :, None]
    p_out = out + tile * KEPT * D + slot[:, :, None] * D + o_d[None, None, :]
    tl.store(p_out, b_x, mask=m_out & m_d[None, None, :])

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
        tl.store(p_hole, zeros, mask=hole[:, None] & m_d[None, :])
    else:
        count = KEPT

    b_kept = tl.where(m_out, b_x, 0.0).to(pooled.dtype.element_ty)
    total = tl.sum(tl.reshape(b_kept, [BLOCK_W * BLOCK_V, BLOCK_D]), 0)
    tl.store(pooled + tile * D + o_d, total / count, mask=m_d)


@triton.jit
def _prune_backward(
    dout, index, dx, D,
    ROWS: tl.constexpr, KEPT: tl.constexpr,
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep ``ceil(keep * tokens)`` queries of every window, the least similar to its center.

    x ``[B, H, n * rows, D]`` of any strides with D contiguous, tile-major for the video; windows of
    ``window`` (T, H, W) in tiles of ``tile``, each with ``slots`` of the ``kept`` rows. Returns
    ``[B, H, n * kept, D]``, differentiable in x; index int32 ``[B, H, n, kept]``, the tile's row of
    each, -1 in empty slots; and the mean of each tile's, ``[B, H, n, D]`` in fp32 (fp64 for fp64).
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
        KEEP=keep, ROWS=rows, SLOTS=slots, KEPT=kept, **grid_of(video, tile, window),
        **blocks_of(V=V, W=W, S=kept, D=D), num_warps=warps_of(V, W, D),
    )  # fmt: skip
    return out, index, pooled


@triton_op("flexsparse::prune_queries_backward", mutates_args={})
def prune_queries_backward(dout: Tensor, index: Tensor, rows: int) -> Tensor:
    """Gradient of :func:`prune_queries` in x: ``[B, H, n * rows, D]``."""
    B, H, n, kept = index.shape
    D = dout.shape[3]
    dx = dout.new_empty((B, H, n * rows, D))
    wrap_triton(_prune_backward)[(n, B * H)](
        dout.contiguous(), index, dx, D, ROWS=rows, KEPT=kept, **blocks_of(R=rows, S=kept, D=D),
        num_warps=warps_of(rows, D),
    )  # fmt: skip
    return dx


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, index, pooled = output
    ctx.rows = inputs[3]
    ctx.mark_non_differentiable(index, pooled)
    ctx.save_for_backward(index)


def _backward(ctx: Any, dout: Tensor, *_: Any) -> tuple:
    (index,) = ctx.saved_tensors
    return prune_queries_backward(dout, index, ctx.rows), *[None] * 7


prune_queries.register_autograd(_backward, setup_context=_save)


def blocks_of(**sizes: int) -> dict[str, int]:
    """BLOCK_X for each X: the power of two that holds it."""
    return {f"BLOCK_{name}": triton.next_power_of_2(n) for name, n in sizes.items()}


def warps_of(*sizes: int) -> int:
    """Warps whose threads hold 64 numbers each of a block of such sizes."""
    block = math.prod(triton.next_power_of_2(n) for n in sizes)
    return min(max(block // (64 * 32), 1), 16)
