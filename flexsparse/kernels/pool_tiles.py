"""Mean over the tokens of every tile, of one to three tensors in one pass over memory.

    out[s][b, h, i] = sum(x_s[b, h, i * rows + r] for r in range(tokens[i])) / tokens[i]
    dx_s[b, h, i * rows + r] = dout[s][b, h, i] / tokens[i] if r < tokens[i] else 0

Rows past a tile's tokens are never loaded, so nothing in padding can reach the result. One program
per tile and tensor; sums in the output's dtype (fp32, or fp64 for fp64). The gradient is a copy of
one row to many, which the compiler fuses with whatever else adds up to the gradient of x: it is
plain PyTorch, and costs no pass of its own.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from flexsparse.derivatives import set_forward_mode
from flexsparse.kernels.geometry import grid_of, tile_tokens
from flexsparse.kernels.recompute import computed_again
from flexsparse.tiling import VideoTiling

_BLOCK_R = 64


@triton.jit
def _pool(
    x0, x1, x2, out0, out1, out2, H, n, D,
    b0, h0, l0, b1, h1, l1, b2, h2, l2,
    VIDEO_T: tl.constexpr, VIDEO_H: tl.constexpr, VIDEO_W: tl.constexpr,
    TILE_T: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    COUNT: tl.constexpr, ROWS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i_n, i_bh, i_s = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    i_b, i_h = i_bh // H, i_bh % H
    tokens = tile_tokens(i_n, VIDEO_T, VIDEO_H, VIDEO_W, TILE_T, TILE_H, TILE_W)
    p_x, stride_l, out = x0 + i_b * b0 + i_h * h0, l0, out0
    if COUNT > 1:  # others are None
        if i_s == 1:
            p_x, stride_l, out = x1 + i_b * b1 + i_h * h1, l1, out1
    if COUNT > 2:
        if i_s == 2:
            p_x, stride_l, out = x2 + i_b * b2 + i_h * h2, l2, out2
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    total = tl.zeros([BLOCK_D], dtype=out0.dtype.element_ty)
    for start in tl.static_range(0, ROWS, BLOCK_R):  # pyright: ignore[reportGeneralTypeIssues]
        o_r = start + tl.arange(0, BLOCK_R)
        m_x = (o_r < tokens)[:, None] & m_d[None, :]
        o_l = (i_n.to(tl.int64) * ROWS + o_r) * stride_l
        b_x = tl.load(p_x + o_l[:, None] + o_d[None, :], mask=m_x, other=0.0)
        total += tl.sum(b_x.to(total.dtype), 0)
    tl.store(out + (i_bh * n + i_n) * D + o_d, total / tokens.to(total.dtype), mask=m_d)


@triton_op("flexsparse::pool_tiles", mutates_args={})
def pool_tiles(
    xs: list[Tensor], video: list[int], tile: list[int], rows: int, kept: int
) -> list[Tensor]:
    """Means over the tokens of each tile, of one to three tensors of one shape and dtype.

    xs ``[B, H, n * rows, D]`` each, tile-major, of any strides with D contiguous; returns as many
    ``[B, H, n, D]`` in fp32 (fp64 for fp64). Differentiable in xs. For its backward a compiled
    graph keeps the means of the first ``kept``, and computes the others' once more.
    """
    B, H, L, D = xs[0].shape
    xs = [x if x.stride(3) == 1 else x.contiguous() for x in xs]
    dtype = torch.promote_types(xs[0].dtype, torch.float32)
    outs = [x.new_empty((B, H, L // rows, D), dtype=dtype) for x in xs]
    for part, again in ((slice(kept), False), (slice(kept, None), True)):
        if xs[part]:
            with computed_again(again):
                _launch(xs[part], outs[part], video, tile, rows)
    return outs


def _launch(
    xs: list[Tensor], outs: list[Tensor], video: list[int], tile: list[int], rows: int
) -> None:
    B, H, L, D = xs[0].shape
    strides = [stride for x in (*xs, *xs[-1:] * 2)[:3] for stride in x.stride()[:3]]
    wrap_triton(_pool)[(L // rows, B * H, len(xs))](
        *(*xs, None, None)[:3], *(*outs, None, None)[:3], H, L // rows, D, *strides,
        COUNT=len(xs), ROWS=rows, BLOCK_R=min(_BLOCK_R, triton.next_power_of_2(rows)),
        BLOCK_D=triton.next_power_of_2(D), **grid_of(video, tile),
    )  # fmt: skip


def _save(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    xs, ctx.video, ctx.tile, ctx.rows, _ = inputs
    ctx.dtype = xs[0].dtype


# No argument has a default: one that equals its default has no place in what torch 2.11 takes back.
def _backward(ctx: Any, douts: list[Tensor]) -> tuple:
    tiling = VideoTiling(tuple(ctx.video), tuple(ctx.tile), ctx.rows)
    # stacked, or Inductor would divide where it adds up, for each token
    dout = torch.stack(douts) / tiling.counts(douts[0].device)[:, None]
    return [tiling.spread(dx) for dx in dout.to(ctx.dtype).unbind()], None, None, None, None


pool_tiles.register_autograd(_backward, setup_context=_save)
set_forward_mode(pool_tiles)
