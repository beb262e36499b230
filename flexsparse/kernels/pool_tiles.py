"""Mean over the valid rows of every tile, in one pass over memory.

    out[b, h, i] = sum(x[b, h, i * rows + r] for r in range(counts[i])) / counts[i]
    dx[b, h, i * rows + r] = dout[b, h, i] / counts[i] if r < counts[i] else 0

Rows past a tile's count are never loaded, so nothing in padding can reach the result. One program
per tile; sums in the output's dtype (fp32, or fp64 for fp64).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

_BLOCK_R = 64


@triton.jit
def _pool_forward(
    x, counts, out, H, stride_b, stride_h, stride_l, D,
    ROWS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i_n, i_bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    n = tl.num_programs(0)
    count = tl.load(counts + i_n)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    p_x = x + (i_bh // H) * stride_b + (i_bh % H) * stride_h
    total = tl.zeros([BLOCK_D], dtype=out.dtype.element_ty)
    for start in tl.static_range(0, ROWS, BLOCK_R):  # pyright: ignore[reportGeneralTypeIssues]
        o_r = start + tl.arange(0, BLOCK_R)
        m_x = (o_r < count)[:, None] & m_d[None, :]
        o_l = (i_n.to(tl.int64) * ROWS + o_r) * stride_l
        b_x = tl.load(p_x + o_l[:, None] + o_d[None, :], mask=m_x, other=0.0)
        total += tl.sum(b_x.to(total.dtype), 0)
    p_out = out + (i_bh * n + i_n) * D + o_d
    tl.store(p_out, total / count.to(total.dtype), mask=m_d)


@triton.jit
def _pool_backward(
    dout, counts, dx, D,
    ROWS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i_n, i_bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    n = tl.num_programs(0)
    count = tl.load(counts + i_n)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    b_g = tl.load(dout + (i_bh * n + i_n) * D + o_d, mask=m_d, other=0.0)
    b_g = b_g / count.to(b_g.dtype)
    p_dx = dx + (i_bh * n + i_n) * ROWS * D
    for start in tl.static_range(0, ROWS, BLOCK_R):  # pyright: ignore[reportGeneralTypeIssues]
        o_r = start + tl.arange(0, BLOCK_R)
        b_dx = tl.where((o_r < count)[:, None], b_g[None, :], 0.0)
        m_dx = (o_r < ROWS)[:, None] & m_d[None, :]
        p_block = p_dx + o_r[:, None] * D + o_d[None, :]
        tl.store(p_block, b_dx.to(dx.dtype.element_ty), mask=m_dx)


def _blocks(rows: int, dim: int) -> dict[str, int]:
    block_r = min(_BLOCK_R, triton.next_power_of_2(rows))
    return {"ROWS": rows, "BLOCK_R": block_r, "BLOCK_D": triton.next_power_of_2(dim)}


@triton_op("flexsparse::pool_tiles", mutates_args={})
def pool_tiles(x: Tensor, counts: Tensor, rows: int) -> Tensor:
    """Mean of the first ``counts[i]`` rows of tile i.

    x ``[B, H, n * rows, D]`` of any strides with D contiguous, counts int32 ``[n]`` of 1 to rows;
    returns ``[B, H, n, D]`` in fp32 (fp64 for fp64). Differentiable in x.
    """
    B, H, L, D = x.shape
    x = x if x.stride(3) == 1 else x.contiguous()
    out = x.new_empty((B, H, L // rows, D), dtype=torch.promote_types(x.dtype, torch.float32))
    wrap_triton(_pool_forward)[(L // rows, B * H)](
        x, counts, out, H, x.stride(0), x.stride(1), x.stride(2), D, **_blocks(rows, D)
    )
    return out


@triton_op("flexsparse::pool_tiles_backward", mutates_args={})
def pool_tiles_backward(dout: Tensor, counts: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """Gradient of :func:`pool_tiles` in x: ``[B, H, n * rows, D]`` of dtype, 0 in padding."""
    B, H, n, D = dout.shape
    dout = dout.contiguous()
    dx = dout.new_empty((B, H, n * rows, D), dtype=dtype)
    wrap_triton(_pool_backward)[(n, B * H)](dout, counts, dx, D, **_blocks(rows, D))
    return dx


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, counts, ctx.rows = inputs
    ctx.dtype = x.dtype
    ctx.save_for_backward(counts)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None, None]:
    (counts,) = ctx.saved_tensors
    return pool_tiles_backward(dout, counts, ctx.rows, ctx.dtype), None, None


pool_tiles.register_autograd(_backward, setup_context=_save)
