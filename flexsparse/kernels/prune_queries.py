"""The queries of every tile that stay: cosine to the center, choice and gather in one pass.

    similarity[i] = x[i] . x[c(i)] / (|x[i]| |x[c(i)]|)          c(i) the center of i's window
    rank[i]       = how many of i's window are less similar (ties: lower index), the center first
    out[slot]     = x[i], index[slot] = row of i                 where rank[i] < quota
    dx[row]       = dout[slot] where index[slot] = row, else 0

One program per tile; a tile's tokens stand window after window, W windows of V. Similarities are
computed in fp32. Rows that hold no token are never loaded, slots that stay empty are written as 0.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton


@triton.jit
def _prune_forward(
    x, rows, center, quota, index, out, H, stride_b, stride_h, stride_l, D,
    ROWS: tl.constexpr, KEPT: tl.constexpr, W: tl.constexpr, V: tl.constexpr, K: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i_n, i_bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    n = tl.num_programs(0)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    o_i = tl.arange(0, BLOCK_I)
    window = o_i // V
    row = tl.load(rows + i_n * W * V + o_i, mask=o_i < W * V, other=-1)
    m_i = row >= 0
    p_x = x + (i_bh // H) * stride_b + (i_bh % H) * stride_h + i_n.to(tl.int64) * ROWS * stride_l
    p_row = p_x + row.to(tl.int64)[:, None] * stride_l + o_d[None, :]
    b_x = tl.load(p_row, mask=m_i[:, None] & m_d[None, :], other=0.0)

    at_center = window * V + tl.load(center + i_n * W + window, mask=m_i, other=0)
    row_c = tl.load(rows + i_n * W * V + at_center, mask=m_i, other=0)
    p_c = p_x + row_c.to(tl.int64)[:, None] * stride_l + o_d[None, :]
    b_c = tl.load(p_c, mask=m_i[:, None] & m_d[None, :], other=0.0).to(tl.float32)
    b_x = b_x.to(tl.float32)
    dot = tl.sum(b_x * b_c, 1)
    lengths = tl.sqrt(tl.sum(b_x * b_x, 1)) * tl.sqrt(tl.sum(b_c * b_c, 1))
    similarity = dot / tl.maximum(lengths, 1.1754943508222875e-38)
    similarity = tl.where(similarity == similarity, similarity, -2.0)  # NaN stays, and shows
    similarity = tl.where(o_i == at_center, -3.0, similarity)

    alike = (window[:, None] == window[None, :]) & m_i[None, :]
    before = o_i[None, :] < o_i[:, None]
    less = similarity[None, :] < similarity[:, None]
    first = less | ((similarity[None, :] == similarity[:, None]) & before)
    rank = tl.sum((alike & first).to(tl.int32), 1)
    stays = m_i & (rank < tl.load(quota + i_n * W + window, mask=m_i, other=0))
    slot = window * K + tl.sum((alike & before & stays[None, :]).to(tl.int32), 1)

    o_s = tl.arange(0, BLOCK_S)
    taken = (slot[:, None] == o_s[None, :]) & stays[:, None]
    kept = tl.sum(tl.where(taken, row[:, None] + 1, 0), 0) - 1  # pyright: ignore
    m_s = o_s < KEPT
    o_out = (i_bh * n + i_n) * KEPT + o_s
    tl.store(index + o_out, kept, mask=m_s)
    p_kept = p_x + kept.to(tl.int64)[:, None] * stride_l + o_d[None, :]
    b_out = tl.load(p_kept, mask=(kept >= 0)[:, None] & m_d[None, :], other=0.0)
    tl.store(out + o_out[:, None] * D + o_d[None, :], b_out, mask=m_s[:, None] & m_d[None, :])


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


def _blocks(**sizes: int) -> dict[str, int]:
    return {f"BLOCK_{k}": max(16, triton.next_power_of_2(n)) for k, n in sizes.items()}


@triton_op("flexsparse::prune_queries", mutates_args={})
def prune_queries(
    x: Tensor, rows: Tensor, center: Tensor, quota: Tensor, block: int, slots: int, kept: int
) -> tuple[Tensor, Tensor]:
    """Keep the ``quota`` tokens of every window that are least similar to its center.

    x ``[B, H, n * block, D]`` of any strides with D contiguous; rows int32 ``[n, W, V]`` (row in
    the tile, -1 for none), center and quota int32 ``[n, W]``; a window has ``slots`` of the
    ``kept`` rows. Returns ``[B, H, n * kept, D]``, differentiable in x, and index int32
    ``[B, H, n, kept]``, -1 in empty slots.
    """
    B, H, _, D = x.shape
    n, W, V = rows.shape
    x = x if x.stride(3) == 1 else x.contiguous()
    out = x.new_empty((B, H, n * kept, D))
    index = rows.new_empty((B, H, n, kept))
    wrap_triton(_prune_forward)[(n, B * H)](
        x, rows, center, quota, index, out, H, x.stride(0), x.stride(1), x.stride(2), D,
        ROWS=block, KEPT=kept, W=W, V=V, K=slots, **_blocks(I=W * V, S=kept, D=D),
    )  # fmt: skip
    return out, index


@triton_op("flexsparse::prune_queries_backward", mutates_args={})
def prune_queries_backward(dout: Tensor, index: Tensor, block: int) -> Tensor:
    """Gradient of :func:`prune_queries` in x: ``[B, H, n * block, D]``."""
    B, H, n, kept = index.shape
    D = dout.shape[3]
    dx = dout.new_empty((B, H, n * block, D))
    wrap_triton(_prune_backward)[(n, B * H)](
        dout.contiguous(), index, dx, D, ROWS=block, KEPT=kept, **_blocks(R=block, S=kept, D=D)
    )
    return dx


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.block = inputs[4]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, dout: Tensor, _: Any) -> tuple:
    (index,) = ctx.saved_tensors
    return prune_queries_backward(dout, index, ctx.block), *[None] * 6


prune_queries.register_autograd(_backward, setup_context=_save)
