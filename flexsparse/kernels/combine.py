"""The coarse and the fine output under their gates, in one pass over memory.

    out[r] = fine[r] * gate_fine[r] + coarse[tile(r)] * gate_coarse[r]      where r holds a token

    dfine[r]   = dout[r] * gate_fine[r]         dgate_fine[r]   = dout[r] * fine[r]
    dcoarse[i] = sum(dout[r] * gate_coarse[r]   dgate_coarse[r] = dout[r] * coarse[tile(r)]
                     for r in tile i)

Without gate_fine, fine counts as it is. Rows of padding are never loaded and are written as 0. One
program per tile, in the dtype of coarse (fp32, or fp64 for fp64); heads are next to each other in
the order of programs as they are in what projections read and write, ``[B, L, H, D]``.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from flexsparse.derivatives import set_forward_mode, set_once
from flexsparse.kernels.geometry import grid_of, tile_tokens

_BLOCK_R = 32


@triton.jit
def _rows(x, stride_b, stride_h, stride_l, o_l, o_d):
    """Where rows o_l of this program's head stand: ``[BLOCK_R, BLOCK_D]``."""
    i_h, i_b = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    return x + i_b * stride_b + i_h * stride_h + (o_l * stride_l)[:, None] + o_d[None, :]


@triton.jit
def _combine_forward(
    fine, coarse, gate_coarse, gate_fine, out, D,
    b0, h0, l0, b1, h1, l1, b2, h2, l2, b3, h3, l3,
    VIDEO_T: tl.constexpr, VIDEO_H: tl.constexpr, VIDEO_W: tl.constexpr,
    TILE_T: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    GATED: tl.constexpr, ROWS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i_h, i_n, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    H, n = tl.num_programs(0), tl.num_programs(1)
    tokens = tile_tokens(i_n, VIDEO_T, VIDEO_H, VIDEO_W, TILE_T, TILE_H, TILE_W)
    dtype: tl.constexpr = coarse.dtype.element_ty
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    b_c = tl.load(coarse + ((i_b * H + i_h) * n + i_n) * D + o_d, mask=m_d, other=0.0)[None, :]
    for start in tl.static_range(0, ROWS, BLOCK_R):  # pyright: ignore[reportGeneralTypeIssues]
        o_r = start + tl.arange(0, BLOCK_R)
        m_r, o_l = (o_r < tokens)[:, None] & m_d[None, :], i_n * ROWS + o_r
        b_out = tl.load(_rows(fine, b0, h0, l0, o_l, o_d), mask=m_r, other=0.0).to(dtype)
        if GATED:
            b_g = tl.load(_rows(gate_fine, b2, h2, l2, o_l, o_d), mask=m_r, other=0.0)
            b_out = b_out * b_g.to(dtype)
        b_g = tl.load(_rows(gate_coarse, b1, h1, l1, o_l, o_d), mask=m_r, other=0.0)
        b_out = tl.where(m_r, b_out + b_c * b_g.to(dtype), 0.0).to(out.dtype.element_ty)
        m_out = (o_r < ROWS)[:, None] & m_d[None, :]
        tl.store(_rows(out, b3, h3, l3, o_l, o_d), b_out, mask=m_out)


@triton.jit
def _combine_backward(
    dout, fine, coarse, gate_coarse, gate_fine, dfine, dcoarse, dgate_coarse, dgate_fine, D,
    b0, h0, l0, b1, h1, l1, b2, h2, l2, b3, h3, l3, b4, h4, l4, b5, h5, l5,
    VIDEO_T: tl.constexpr, VIDEO_H: tl.constexpr, VIDEO_W: tl.constexpr,
    TILE_T: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    GATED: tl.constexpr, ROWS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i_h, i_n, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    H, n = tl.num_programs(0), tl.num_programs(1)
    tokens = tile_tokens(i_n, VIDEO_T, VIDEO_H, VIDEO_W, TILE_T, TILE_H, TILE_W)
    dtype: tl.constexpr = coarse.dtype.element_ty
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    o_c = ((i_b * H + i_h) * n + i_n) * D + o_d
    b_c = tl.load(coarse + o_c, mask=m_d, other=0.0)[None, :]
    b_dc = tl.zeros([BLOCK_D], dtype)
    for start in tl.static_range(0, ROWS, BLOCK_R):  # pyright: ignore[reportGeneralTypeIssues]
        o_r = start + tl.arange(0, BLOCK_R)
        m_r, o_l = (o_r < tokens)[:, None] & m_d[None, :], i_n * ROWS + o_r
        m_out = (o_r < ROWS)[:, None] & m_d[None, :]
        b_dout = tl.load(_rows(dout, b3, h3, l3, o_l, o_d), mask=m_r, other=0.0).to(dtype)
        b_g = tl.load(_rows(gate_coarse, b1, h1, l1, o_l, o_d), mask=m_r, other=0.0)
        b_dc += tl.sum(b_dout * b_g.to(dtype), 0)
        b_dg = tl.where(m_r, b_dout * b_c, 0.0).to(dgate_coarse.dtype.element_ty)
        tl.store(_rows(dgate_coarse, b5, h5, l5, o_l, o_d), b_dg, mask=m_out)
        b_dfine = b_dout
        if GATED:
            b_g = tl.load(_rows(gate_fine, b2, h2, l2, o_l, o_d), mask=m_r, other=0.0)
            b_dfine = b_dout * b_g.to(dtype)
            b_dg = tl.load(_rows(fine, b0, h0, l0, o_l, o_d), mask=m_r, other=0.0).to(dtype)
            b_dg = (b_dg * b_dout).to(dgate_fine.dtype.element_ty)
            tl.store(_rows(dgate_fine, b5, h5, l5, o_l, o_d), b_dg, mask=m_out)
        b_dfine = b_dfine.to(dfine.dtype.element_ty)
        tl.store(_rows(dfine, b4, h4, l4, o_l, o_d), b_dfine, mask=m_out)
    tl.store(dcoarse + o_c, b_dc, mask=m_d)


def _sizes(D: int, video: list[int], tile: list[int], rows: int) -> dict[str, int]:
    block_r = min(_BLOCK_R, triton.next_power_of_2(rows))
    block_d = triton.next_power_of_2(D)
    return {"ROWS": rows, "BLOCK_R": block_r, "BLOCK_D": block_d, **grid_of(video, tile)}


def _strides(*xs: Tensor) -> list[int]:
    return [stride for x in xs for stride in x.stride()[:3]]


def _with_heads_inside(x: Tensor) -> Tensor:
    """Empty ``[B, H, L, D]`` in the memory order ``[B, L, H, D]``."""
    B, H, L, D = x.shape
    return x.new_empty((B, L, H, D)).transpose(1, 2)


def _rows_whole(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 else x.contiguous()


@triton_op("flexsparse::combine", mutates_args={})
def combine(
    fine: Tensor, coarse: Tensor, gate_coarse: Tensor, gate_fine: Tensor | None,
    video: list[int], tile: list[int], rows: int,
) -> Tensor:  # fmt: skip
    """The gated sum of fine ``[B, H, n * rows, D]`` and coarse ``[B, H, n, D]`` in fp32.

    fine and the gates, alike, may have any strides. Returns ``[B, H, n * rows, D]`` in fine's dtype
    and the memory order ``[B, n * rows, H, D]``, 0 in padding; differentiable in all four.
    """
    B, H, L, D = fine.shape
    fine, gate_coarse = _rows_whole(fine), _rows_whole(gate_coarse)
    gate = fine if gate_fine is None else _rows_whole(gate_fine)
    out = _with_heads_inside(fine)
    wrap_triton(_combine_forward)[(H, L // rows, B)](
        fine, coarse.contiguous(), gate_coarse, gate, out, D,
        *_strides(fine, gate_coarse, gate, out), GATED=gate_fine is not None,
        **_sizes(D, video, tile, rows),
    )  # fmt: skip
    return out


@triton_op("flexsparse::combine_backward", mutates_args={})
def combine_backward(
    dout: Tensor, fine: Tensor, coarse: Tensor, gate_coarse: Tensor, gate_fine: Tensor | None,
    video: list[int], tile: list[int], rows: int,
) -> list[Tensor]:  # fmt: skip
    """Gradients of :func:`combine` in fine (in its memory order), coarse, gate_coarse and, if it is
    given, gate_fine (in the memory order ``[B, n * rows, H, D]``), 0 in padding."""
    B, H, L, D = fine.shape
    dout, fine, gate_coarse = _rows_whole(dout), _rows_whole(fine), _rows_whole(gate_coarse)
    gate = fine if gate_fine is None else _rows_whole(gate_fine)
    inside = fine.stride(1) < fine.stride(2)
    dfine = _with_heads_inside(fine) if inside else fine.new_empty(fine.shape)
    dcoarse = coarse.new_empty(coarse.shape)
    dgates = [_with_heads_inside(x) for x in (gate_coarse, gate_fine) if x is not None]
    wrap_triton(_combine_backward)[(H, L // rows, B)](
        dout, fine, coarse.contiguous(), gate_coarse, gate, dfine, dcoarse, dgates[0], dgates[-1],
        D, *_strides(fine, gate_coarse, gate, dout, dfine, dgates[0]),
        GATED=gate_fine is not None, **_sizes(D, video, tile, rows),
    )  # fmt: skip
    return [dfine, dcoarse, *dgates]


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, video, tile, rows = inputs
    ctx.save_for_backward(*tensors)
    ctx.shape = {"video": video, "tile": tile, "rows": rows}


def _backward(ctx: Any, dout: Tensor) -> tuple:
    grads = combine_backward(dout, *ctx.saved_tensors, **ctx.shape)
    return *grads, *[None] * (7 - len(grads))


combine.register_autograd(_backward, setup_context=_save)
set_forward_mode(combine)
set_once(combine_backward)
