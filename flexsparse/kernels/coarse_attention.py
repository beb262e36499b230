"""Attention between the means of tiles; scores live in registers and never reach memory.

    s[i, j] = scale * q[i] . k[j]                   p = exp(s - lse)
    lse[i]  = log(sum(exp(s[i, j]) for j))          ds[i, j] = p[i, j] * dout[i] . (v[j] - out[i])
    out[i]  = sum(p[i, j] * v[j] for j)             dv[j] = sum(p[i, j] * dout[i] for i)
    dq[i]   = sum(ds[i, j] * scale * k[j] for j)    dk[j] = sum(ds[i, j] * scale * q[i] for i)

In fp32, on tensor cores in three parts of tf32. A program owns some rows of a result and adds up
over the other side in order: no atomics. The backward is one launch, a third of its programs each
for dk, dq and dv; it reads its own rows anew for each block, since they would fill all registers.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from flexsparse.derivatives import set_forward_mode, set_once
from flexsparse.kernels.launch import is_hopper, stages
from flexsparse.kernels.recompute import computed_again


@triton.jit
def _load(x, o_n, o_d, n, D: tl.constexpr):
    mask = (o_n < n)[:, None] & (o_d < D)[None, :]
    return tl.load(x + o_n[:, None] * D + o_d[None, :], mask=mask, other=0.0)


@triton.jit
def _store(x, o_n, o_d, n, D: tl.constexpr, b_x):
    mask = (o_n < n)[:, None] & (o_d < D)[None, :]
    tl.store(x + o_n[:, None] * D + o_d[None, :], b_x, mask=mask)


@triton.jit
def _coarse_forward(
    q, k, v, out, lse, n, SCALE: tl.constexpr, D: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i_n, i_bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    head = i_bh * n * D
    o_i, o_d = i_n * BLOCK_I + tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_D)
    b_q = _load(q + head, o_i, o_d, n, D)
    largest, total = tl.full([BLOCK_I], float("-inf"), tl.float32), tl.zeros([BLOCK_I], tl.float32)
    b_out = tl.zeros([BLOCK_I, BLOCK_D], tl.float32)
    for start in range(0, n, BLOCK_J):
        o_j = start + tl.arange(0, BLOCK_J)
        b_k = _load(k + head, o_j, o_d, n, D)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="tf32x3") * SCALE
        b_s = tl.where((o_j < n)[None, :], b_s, float("-inf"))
        before = largest
        largest = tl.maximum(before, tl.max(b_s, 1))
        b_p = tl.exp(b_s - largest[:, None])
        shrink = tl.exp(before - largest)
        total = total * shrink + tl.sum(b_p, 1)
        b_v = _load(v + head, o_j, o_d, n, D)
        b_out = tl.dot(b_p, b_v, b_out * shrink[:, None], input_precision="tf32x3")
    _store(out + head, o_i, o_d, n, D, b_out / total[:, None])
    tl.store(lse + i_bh * n + o_i, largest + tl.log(total), mask=o_i < n)


@triton.jit
def _backward_qk(
    x, y, x_other, y_other, dout, out, lse, dx, i_n, n, OF_KEYS: tl.constexpr,
    SCALE: tl.constexpr, D: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dx of own x with y: dq of q with dout, from k with v; or, OF_KEYS, the other way round."""
    o_i, o_d = i_n * BLOCK_I + tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_D)
    b_dx = tl.zeros([BLOCK_I, BLOCK_D], tl.float32)
    if not OF_KEYS:
        b_lse = tl.load(lse + o_i, mask=o_i < n, other=0.0)
        b_delta = tl.sum(_load(dout, o_i, o_d, n, D) * _load(out, o_i, o_d, n, D), 1)
    for start in range(0, n, BLOCK_J):
        o_j = start + tl.arange(0, BLOCK_J)
        b_s = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
        b_dp = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
        if OF_KEYS:
            b_lse = tl.load(lse + o_j, mask=o_j < n, other=0.0)
            b_delta = tl.zeros([BLOCK_J], tl.float32)
        for at in range(0, D, BLOCK_C):
            o_c = at + tl.arange(0, BLOCK_C)
            b_x, b_x_other = _load(x, o_i, o_c, n, D), _load(x_other, o_j, o_c, n, D)
            b_s = tl.dot(b_x, tl.trans(b_x_other), b_s, input_precision="tf32x3")
            b_y, b_y_other = _load(y, o_i, o_c, n, D), _load(y_other, o_j, o_c, n, D)
            b_dp = tl.dot(b_y, tl.trans(b_y_other), b_dp, input_precision="tf32x3")
            if OF_KEYS:
                b_delta += tl.sum(b_y_other * _load(out, o_j, o_c, n, D), 1)  # pyright: ignore
        m_k = (o_i < n)[:, None] if OF_KEYS else (o_j < n)[None, :]
        b_s = tl.where(m_k, b_s * SCALE, float("-inf")) - tl.expand_dims(b_lse, 1 - OF_KEYS)
        b_ds = tl.exp(b_s) * (b_dp - tl.expand_dims(b_delta, 1 - OF_KEYS))
        b_dx = tl.dot(b_ds, _load(x_other, o_j, o_d, n, D), b_dx, input_precision="tf32x3")
    _store(dx, o_i, o_d, n, D, b_dx * SCALE)


@triton.jit
def _backward_v(
    q, k, dout, lse, dv, i_n, n, SCALE: tl.constexpr, D: tl.constexpr, BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    o_i, o_d = i_n * BLOCK_I + tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_D)
    b_dv = tl.zeros([BLOCK_I, BLOCK_D], tl.float32)
    for start in range(0, n, BLOCK_J):
        o_j = start + tl.arange(0, BLOCK_J)
        b_s = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
        for at in range(0, D, BLOCK_C):
            o_c = at + tl.arange(0, BLOCK_C)
            b_q = tl.trans(_load(q, o_j, o_c, n, D))
            b_s = tl.dot(_load(k, o_i, o_c, n, D), b_q, b_s, input_precision="tf32x3")
        b_s = tl.where((o_i < n)[:, None], b_s * SCALE, float("-inf"))
        b_p = tl.exp(b_s - tl.load(lse + o_j, mask=o_j < n, other=0.0)[None, :])
        b_dv = tl.dot(b_p, _load(dout, o_j, o_d, n, D), b_dv, input_precision="tf32x3")
    _store(dv, o_i, o_d, n, D, b_dv)


@triton.jit
def _coarse_backward(
    dout, q, k, v, out, lse, dq, dk, dv, n, SCALE: tl.constexpr, D: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i_n, i_bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    blocks = tl.num_programs(0) // 3
    i_part, i_n = i_n // blocks, i_n % blocks
    o = i_bh * n * D
    q, k, v, dout, out, lse = q + o, k + o, v + o, dout + o, out + o, lse + i_bh * n
    if i_part == 0:
        _backward_qk(
            k, v, q, dout, dout, out, lse, dk + o, i_n, n, True,  # pyright: ignore
            SCALE, D, BLOCK_I, BLOCK_J, BLOCK_C, BLOCK_D,
        )  # fmt: skip
    elif i_part == 1:
        _backward_qk(
            q, dout, k, v, dout, out, lse, dq + o, i_n, n, False,  # pyright: ignore
            SCALE, D, BLOCK_I, BLOCK_J, BLOCK_C, BLOCK_D,
        )  # fmt: skip
    else:
        _backward_v(
            q, k, dout, lse, dv + o, i_n, n,
            SCALE, D, BLOCK_I, BLOCK_J, BLOCK_C, BLOCK_D,
        )  # fmt: skip


def _blocks(x: Tensor, backward: bool) -> dict[str, int]:
    """As large as registers hold without spilling. On Hopper 64 rows or more are a warpgroup's,
    which splits fp32 into tf32 once for all of a block's columns, not once for each 8 of them."""
    D = x.shape[-1]
    if D > 128:
        block_i, block_j, warps = 16, 32, 8
    elif is_hopper(x):
        block_i, block_j, warps = (64, 32, 4) if backward else (128, 32, 8)
    else:
        block_i, block_j, warps = 32, 64, 8
    block_d = max(16, triton.next_power_of_2(D))
    return {"D": D, "BLOCK_I": block_i, "BLOCK_J": block_j, "BLOCK_D": block_d, "num_warps": warps}


@triton_op("flexsparse::coarse_attention", mutates_args={})
def coarse_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, again: bool
) -> tuple[Tensor, Tensor]:
    """Attention of every query to every key.

    q fp32 ``[B, H, n, D]``, k and v alike, with as many heads or a divisor; returns out, like q and
    differentiable in q, k and v, and the log-sum-exp of the scores, fp32 ``[B, H, n]``. A compiled
    graph computes both once more in its backward if ``again``.
    """
    B, H, n, D = q.shape
    blocks = _blocks(q, backward=False)
    out, lse = q.new_empty(q.shape), q.new_empty((B, H, n))
    with computed_again(again):
        k, v = (_for_heads(x, H) for x in (k, v))
        wrap_triton(_coarse_forward)[(triton.cdiv(n, blocks["BLOCK_I"]), B * H)](
            q.contiguous(), k, v, out, lse, n,
            SCALE=scale, num_stages=stages(q), **blocks,
        )  # fmt: skip
    return out, lse


@triton_op("flexsparse::coarse_attention_backward", mutates_args={})
def coarse_attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`coarse_attention` in q, k and v, each like its own."""
    B, H, n, D = q.shape
    blocks, heads = _blocks(q, backward=True), k.shape[1]
    dq, dk, dv = q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)
    k, v = (_for_heads(x, H) for x in (k, v))
    wrap_triton(_coarse_backward)[(3 * triton.cdiv(n, blocks["BLOCK_I"]), B * H)](
        dout.contiguous(), q.contiguous(), k, v, out, lse, dq, dk, dv,
        n, SCALE=scale, BLOCK_C=16, num_stages=3, **blocks,
    )  # fmt: skip
    if heads < H:
        dk, dv = (x.unflatten(1, (heads, -1)).sum(2) for x in (dk, dv))
    return dq, dk, dv


def _for_heads(x: Tensor, heads: int) -> Tensor:
    """x for each of so many heads, of which some share one of its own."""
    groups = heads // x.shape[1]
    return (x.repeat_interleave(groups, 1) if groups > 1 else x).contiguous()


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *qkv, ctx.scale, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*qkv, *output)


def _backward(ctx: Any, dout: Tensor, _: Any) -> tuple:
    return *coarse_attention_backward(dout, *ctx.saved_tensors, scale=ctx.scale), None, None


coarse_attention.register_autograd(_backward, setup_context=_save)
set_forward_mode(coarse_attention)
set_once(coarse_attention_backward)
