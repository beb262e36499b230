"""Every row of a tile takes the output of a kept row of its window, and gives its gradient back.

    source[r] = argmin over the slots s of r's window of (cost(r, s), s)
    out[r]    = x[source[r]]
    dx[s]     = sum(dout[r] for r where source[r] = s)

cost is the squared distance in the grid, or, to fill from the center, 0 for r itself, 1 for the
center and more for others. One program per tile, and in the backward per 128 channels; its sum over
rows is a product with zeros and ones on tensor cores, which add up in fp32: tf32 holds all of half
precision, and fp32 in three parts. Padding rows are written as 0 and never loaded.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from flexsparse.kernels.prune_queries import _blocks


@triton.jit
def _restore_forward(
    x, index, place, center, source, out, D,
    ROWS: tl.constexpr, KEPT: tl.constexpr, W: tl.constexpr, V: tl.constexpr,
    SIZE_H: tl.constexpr, SIZE_W: tl.constexpr, FROM_CENTER: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i_n, i_bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tile = i_bh * tl.num_programs(0) + i_n
    o_d, o_r, o_s = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_S)
    m_d, m_out = o_d < D, o_r < ROWS
    at = tl.load(place + i_n * ROWS + o_r, mask=m_out, other=-1)
    m_r = at >= 0
    row = tl.load(index + tile * KEPT + o_s, mask=o_s < KEPT, other=-1)
    m_s = row >= 0
    held = tl.load(place + i_n * ROWS + row, mask=m_s, other=0)

    mine, theirs = (at % V)[:, None], (held % V)[None, :]
    if FROM_CENTER:
        middle = tl.load(center + i_n * W + at // V, mask=m_r, other=0)
        cost = tl.where(mine == theirs, 0, tl.where(theirs == middle[:, None], 1, 2))
    else:
        d_t = mine // (SIZE_H * SIZE_W) - theirs // (SIZE_H * SIZE_W)
        d_h = mine // SIZE_W % SIZE_H - theirs // SIZE_W % SIZE_H
        d_w = mine % SIZE_W - theirs % SIZE_W
        cost = d_t * d_t + d_h * d_h + d_w * d_w
    near = (at // V)[:, None] == (held // V)[None, :]
    cost = tl.where(near & m_s[None, :], cost * BLOCK_S + o_s[None, :], 1 << 30)
    slot = tl.where(m_r, tl.min(cost, 1) % BLOCK_S, -1)  # pyright: ignore
    tl.store(source + tile * ROWS + o_r, slot, mask=m_out)
    p_x = x + (tile * KEPT + slot)[:, None] * D + o_d[None, :]
    b_x = tl.load(p_x, mask=m_r[:, None] & m_d[None, :], other=0.0)
    p_out = out + (tile * ROWS + o_r)[:, None] * D + o_d[None, :]
    tl.store(p_out, b_x, mask=m_out[:, None] & m_d[None, :])


@triton.jit
def _restore_backward(
    dout, source, dx, D,
    ROWS: tl.constexpr, KEPT: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i_n, i_bh, i_d = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    tile = i_bh * tl.num_programs(0) + i_n
    o_r, o_s = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_S)
    o_d = i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < D
    slot = tl.load(source + tile * ROWS + o_r, mask=o_r < ROWS, other=-1)
    p_g = dout + (tile * ROWS + o_r)[:, None] * D + o_d[None, :]
    b_g = tl.load(p_g, mask=(slot >= 0)[:, None] & m_d[None, :], other=0.0)
    takes = (o_s[:, None] == slot[None, :]).to(tl.float32)
    b_dx = tl.dot(takes, b_g.to(tl.float32), input_precision=PRECISION)
    p_dx = dx + (tile * KEPT + o_s)[:, None] * D + o_d[None, :]
    tl.store(p_dx, b_dx.to(dx.dtype.element_ty), mask=(o_s < KEPT)[:, None] & m_d[None, :])


@triton_op("flexsparse::restore_rows", mutates_args={})
def restore_rows(
    x: Tensor, index: Tensor, place: Tensor, center: Tensor, size: list[int], from_center: bool
) -> tuple[Tensor, Tensor]:
    """Spread the kept rows over their windows.

    x ``[B, H, n * kept, D]``, index int32 ``[B, H, n, kept]`` as prune_queries returns it, place
    int32 ``[n, rows]`` (window * V + token, -1 in padding), center int32 ``[n, W]``; windows of
    ``size`` (T, H, W). Returns ``[B, H, n * rows, D]``, differentiable in x, and the slot that each
    row took, int32 ``[B, H, n, rows]``.
    """
    B, H, n, kept = index.shape
    D, rows = x.shape[3], place.shape[1]
    out = x.new_empty((B, H, n * rows, D))
    source = index.new_empty((B, H, n, rows))
    wrap_triton(_restore_forward)[(n, B * H)](
        x.contiguous(), index.contiguous(), place, center, source, out, D,
        ROWS=rows, KEPT=kept, W=center.shape[1], V=size[0] * size[1] * size[2],
        SIZE_H=size[1], SIZE_W=size[2], FROM_CENTER=from_center,
        **_blocks(R=rows, S=kept, D=D),
    )  # fmt: skip
    return out, source


@triton_op("flexsparse::restore_rows_backward", mutates_args={})
def restore_rows_backward(dout: Tensor, source: Tensor, kept: int) -> Tensor:
    """Gradient of :func:`restore_rows` in x: ``[B, H, n * kept, D]``."""
    B, H, n, rows = source.shape
    D = dout.shape[3]
    dx = dout.new_empty((B, H, n * kept, D))
    blocks = _blocks(R=rows, S=kept, D=min(D, 128))
    precision = "tf32x3" if dout.dtype == torch.float32 else "tf32"
    grid = n, B * H, triton.cdiv(D, blocks["BLOCK_D"])
    wrap_triton(_restore_backward)[grid](
        dout.contiguous(), source, dx, D, ROWS=rows, KEPT=kept, PRECISION=precision, **blocks
    )
    return dx


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.kept = inputs[1].shape[3]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, dout: Tensor, _: Any) -> tuple:
    (source,) = ctx.saved_tensors
    return restore_rows_backward(dout, source, ctx.kept), *[None] * 5


restore_rows.register_autograd(_backward, setup_context=_save)
