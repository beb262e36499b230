"""Every row of a tile takes the output of a kept row of its window, and gives its gradient back.

    source[r] = argmin over the slots s of r's window of (cost(r, s), s)
    out[r]    = x[source[r]]
    dx[s]     = sum(dout[r] for r where source[r] = s)

cost is the squared distance in the grid, or, to fill from the center, 0 for r itself, 1 for the
center and more for others. One program per tile, its tokens as V of each of W windows: where they
stand follows from the tile's number. In the backward one per 128 channels or fewer; its sum over
rows is a product with zeros and ones on tensor cores, which add up in fp32: they take half
precision as it is, and fp32 in three parts. Padding rows are written as 0 and never loaded.
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
def _restore_forward(
    x, index, source, out, stride_b, stride_h, stride_l, D,
    VIDEO_T: tl.constexpr, VIDEO_H: tl.constexpr, VIDEO_W: tl.constexpr,
    TILE_T: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    SIZE_T: tl.constexpr, SIZE_H: tl.constexpr, SIZE_W: tl.constexpr,
    ROWS: tl.constexpr, SLOTS: tl.constexpr, KEPT: tl.constexpr, FROM_CENTER: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    FIRST: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    i_n, i_h, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    n, H = tl.num_programs(0), tl.num_programs(1)
    tile = (i_b * H + i_h) * n + i_n
    o_w, o_v, o_k = tl.arange(0, BLOCK_W), tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_K)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    sides, first, extent = window_boxes(
        i_n, o_w[:, None], VIDEO_T, VIDEO_H, VIDEO_W, TILE_T, TILE_H, TILE_W, SIZE_T, SIZE_H, SIZE_W
    )
    row = window_rows(sides, first, extent, o_v[None, :], SIZE_H, SIZE_W)
    o_s = o_w[None, :] * SLOTS + o_k[:, None]
    m_s = (o_k < SLOTS)[:, None] & (o_s < KEPT)
    held = tl.load(index + tile * KEPT + o_s, mask=m_s, other=-1)

    mine, theirs = row[None, :, :], held[:, :, None]
    if FROM_CENTER:
        middle = center_rows(sides, first, extent)[None, :, :]
        cost = tl.where(theirs == mine, 0, tl.where(theirs == middle, 1, 2))
    else:
        d_t = mine // (sides[1] * sides[2]) - theirs // (sides[1] * sides[2])
        d_h = mine // sides[2] % sides[1] - theirs // sides[2] % sides[1]
        d_w = mine % sides[2] - theirs % sides[2]
        cost = d_t * d_t + d_h * d_h + d_w * d_w
    cost = tl.where(theirs >= 0, cost * BLOCK_K + o_k[:, None, None], 1 << 30)
    slot = o_w[:, None] * SLOTS + tl.min(cost, 0) % BLOCK_K  # pyright: ignore
    m_r = row >= 0
    tl.store(source + tile * ROWS + row, slot, mask=m_r)

    m_x = m_r[:, :, None] & m_d[None, None, :]
    p_x = x + i_b * stride_b + i_h * stride_h + i_n.to(tl.int64) * KEPT * stride_l
    p_slot = p_x + slot.to(tl.int64)[:, :, None] * stride_l + o_d[None, None, :]
    b_x = tl.load(p_slot, mask=m_x, other=0.0)
    p_out = out + ((i_b * n + i_n) * ROWS * H + i_h) * D
    p_row = p_out + row.to(tl.int64)[:, :, None] * (H * D) + o_d[None, None, :]
    tl.store(p_row, b_x, mask=m_x)
    if FIRST < ROWS:
        o_p = FIRST + tl.arange(0, BLOCK_P)
        m_p = (o_p >= sides[0] * sides[1] * sides[2]) & (o_p < ROWS)
        tl.store(source + tile * ROWS + o_p, tl.full([BLOCK_P], -1, tl.int32), mask=m_p)
        zeros = tl.zeros([BLOCK_P, BLOCK_D], dtype=out.dtype.element_ty)
        p_pad = p_out + o_p[:, None] * (H * D) + o_d[None, :]
        tl.store(p_pad, zeros, mask=m_p[:, None] & m_d[None, :])


@triton.jit
def _restore_backward(
    dout, source, dx, stride_b, stride_h, stride_l, D,
    ROWS: tl.constexpr, KEPT: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i_n, i_h, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    i_n, i_d = i_n // PARTS, i_n % PARTS
    tile = (i_b * tl.num_programs(1) + i_h) * (tl.num_programs(0) // PARTS) + i_n
    o_s, o_d = tl.arange(0, BLOCK_S), i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < D
    p_g = dout + i_b * stride_b + i_h * stride_h + i_n.to(tl.int64) * ROWS * stride_l
    dtype = tl.float64 if dx.dtype.element_ty == tl.float64 else tl.float32
    b_dx = tl.zeros([BLOCK_S, BLOCK_D], dtype=dtype)
    for start in tl.range(0, ROWS, BLOCK_R, num_stages=1):  # pyright: ignore
        o_r = start + tl.arange(0, BLOCK_R)
        slot = tl.load(source + tile * ROWS + o_r, mask=o_r < ROWS, other=-1)
        p_row = p_g + o_r.to(tl.int64)[:, None] * stride_l + o_d[None, :]
        b_g = tl.load(p_row, mask=(slot >= 0)[:, None] & m_d[None, :], other=0.0)
        takes = (o_s[:, None] == slot[None, :]).to(b_g.dtype)
        b_dx = tl.dot(takes, b_g, b_dx, input_precision=PRECISION, out_dtype=dtype)
    p_dx = dx + tile * KEPT * D + o_s[:, None] * D + o_d[None, :]
    tl.store(p_dx, b_dx.to(dx.dtype.element_ty), mask=(o_s < KEPT)[:, None] & m_d[None, :])


@triton_op("flexsparse::restore_rows", mutates_args={})
def restore_rows(
    x: Tensor,
    index: Tensor,
    video: list[int],
    tile: list[int],
    rows: int,
    window: list[int],
    slots: int,
    from_center: bool,
) -> tuple[Tensor, Tensor]:
    """Spread the kept rows over their windows.

    x ``[B, H, n * kept, D]`` of any strides with D contiguous, index int32 ``[B, H, n, kept]`` as
    prune_queries returns it for the same video, tile, rows, window and slots. Returns ``[B, H,
    n * rows, D]``, in memory ``[B, n * rows, H, D]``, so that merging heads is a view,
    differentiable in x; and the slot that each row took, int32 ``[B, H, n, rows]``, -1 in padding.
    """
    B, H, n, kept = index.shape
    D, volume, V = x.shape[3], math.prod(tile), math.prod(window)
    x = x if x.stride(3) == 1 else x.contiguous()
    out = x.new_empty((B, n * rows, H, D))
    source = index.new_empty((B, H, n, rows))
    first = 0 if any(v % t for v, t in zip(video, tile)) else volume  # of the rows of padding
    sizes = dict(W=volume // V, V=V, D=D)
    wrap_triton(_restore_forward)[(n, H, B)](
        x, index.contiguous(), source, out, x.stride(0), x.stride(1), x.stride(2), D,
        **grid_of(video, tile, window), ROWS=rows, SLOTS=slots, KEPT=kept, FROM_CENTER=from_center,
        FIRST=first, **blocks_of(**sizes, K=slots, P=max(rows - first, 1)),
        num_warps=warps_of(*sizes.values()),
    )  # fmt: skip
    return out.transpose(1, 2), source


@triton_op("flexsparse::restore_rows_backward", mutates_args={})
def restore_rows_backward(dout: Tensor, source: Tensor, kept: int) -> Tensor:
    """Gradient of :func:`restore_rows` in x: ``[B, H, n * kept, D]``."""
    B, H, n, rows = source.shape
    D = dout.shape[3]
    dout = dout if dout.stride(3) == 1 else dout.contiguous()
    dx = dout.new_empty((B, H, n * kept, D))
    size = dout.element_size()
    span = triton.next_power_of_2(kept) * size
    # as much at a time as the registers of sm_80, sm_90 and sm_100 hold
    channels = max(min(D, 128, 16384 // span), 16)
    blocks = blocks_of(R=min(rows, 128 // size), S=kept, D=channels)
    parts = triton.cdiv(D, blocks["BLOCK_D"])
    precision = {torch.float32: "tf32x3", torch.float64: "ieee"}.get(dout.dtype, "tf32")
    wrap_triton(_restore_backward)[(n * parts, H, B)](
        dout, source, dx, dout.stride(0), dout.stride(1), dout.stride(2), D,
        ROWS=rows, KEPT=kept, PARTS=parts, PRECISION=precision, **blocks,
        num_warps=4 if span <= 64 else 8,
    )  # fmt: skip
    return dx


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.kept = inputs[1].shape[3]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, dout: Tensor, _: Any) -> tuple:
    (source,) = ctx.saved_tensors
    return restore_rows_backward(dout, source, ctx.kept), *[None] * 7


restore_rows.register_autograd(_backward, setup_context=_save)
set_forward_mode(restore_rows)
set_once(restore_rows_backward)
