"""FlexAttention with a BlockMask on the CPU, forward and backward, from ATen calls alone.

The forward keeps the log-sum-exp; the backward gathers and scores again, chunk by chunk, and adds
the gradients of the gathered key blocks back by index.

    s = scale k q^T      p = exp(s - shift) / total                  out = p^T v
    dv = p g             ds = p (v g^T - rowsum(g out) + g_lse)
    dq = scale ds^T k    dk = scale ds q

The shift is 0, or the row's maximum where large scores need it, and the backward divides the rows
of g by the total instead of p: dividing by exp(lse) would bring in lse's rounding, which is that of
the largest score. exp is exp2 of a multiple, which is faster by far where MKL's exp is slow.
Scores stand keys by queries: most of the products then read their operands in memory order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flexsparse.derivatives import set_forward_mode, set_once
from flexsparse.engines.cpu_chunks import LOG2_E, Walk, gather, to_blocks, to_tokens
from flexsparse.engines.cpu_jvp import block_sparse_attention_jvp

# What a thread gathers and scores at a time: more keeps it busier and leaves its cache, and the
# backward's chunks, which lie beside the gradients, set a step's peak memory.
FORWARD_CHUNK, BACKWARD_CHUNK = 4 << 20, 2 << 20  # bytes
SAFE = 40.0  # a row whose |lse| is below needs no shift: exp and its sums stay in fp32's range


@torch.library.custom_op("flexsparse::block_sparse_attention", mutates_args=(), device_types="cpu")
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    full_num: Tensor | None,
    full_idx: Tensor | None,
    partial_num: Tensor | None,
    partial_idx: Tensor | None,
    partial_mask: Tensor | None,
    q_block: int,
    kv_block: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention of each query block to the key blocks in its lists; differentiable in q, k and v.

    q [B, Hq, Lq, D], k [B, Hkv, Lk, D], v [B, Hkv, Lk, Dv] -> out [B, Hq, Lq, Dv] in q's dtype and
    lse [B, Hq, Lq], the natural log-sum-exp, fp32, or fp64 for fp64; then, for the backward alone,
    the shift and the inverse total of each row. Query head h reads key head h // (Hq // Hkv).
    Lengths need not fill the last block. Half precision is computed in fp32. There are first
    derivatives only, backward and forward.

    full_num int [B or 1, Hq or 1, nq] and full_idx int [.., nq, W]: query block i sees all of the
    key blocks full_idx[.., i, :full_num[.., i]], each listed once; the rest may hold anything.
    partial_num and partial_idx likewise, seen through partial_mask, bool, broadcastable to [B, Hq,
    nq, nk, q_block, kv_block], indexed by query and key block. One of the two pairs may be None.
    A row that sees nothing has out 0, lse -inf and no gradient. A key that no row of a query block
    sees may be NaN without harm to that block.
    """
    lists = full_num, full_idx, partial_num, partial_idx, partial_mask
    walk = Walk(q, k, v, lists, q_block, kv_block, scores=1, chunk_bytes=FORWARD_CHUNK)
    qs = to_blocks(q, q_block, walk.order)
    ks, vs = (to_blocks(x, kv_block).flatten(1) for x in (k, v))
    out = torch.empty(*qs.shape[:2], v.shape[3], dtype=walk.dtype)
    lse, total = (torch.empty(qs.shape[:2], dtype=walk.dtype) for _ in range(2))
    top = torch.zeros_like(total)
    shift = False  # subtract each row's maximum: slower, and only large scores need it
    rows = (x.split(walk.size) for x in (qs.mT, out, lse, total, top))
    for (ids, hidden, (keys, values, p)), q_, out_, lse_, total_, top_ in zip(walk, *rows):
        if not ids.shape[0]:
            out_.zero_()
            lse_.fill_(-torch.inf)
            total_.fill_(torch.inf)
            continue
        q_, keys = q_.to(walk.dtype), gather(ks, ids, hidden, keys)
        while True:
            p.baddbmm_(keys, q_, beta=0, alpha=scale if shift else scale * LOG2_E)
            if hidden is not None:
                hidden.fill(p, -torch.inf)
            if shift:
                torch.amax(p, 1, out=top_)
                top_.masked_fill_(top_ == -torch.inf, 0)
                p.sub_(top_[:, None]).mul_(LOG2_E)
            torch.sum(p.exp2_(), 1, out=total_)
            torch.log(total_, out=lse_)
            if shift:
                lse_.add_(top_)
            safe = torch.linalg.vector_norm(lse_, torch.inf).item() <= SAFE
            if safe or shift:
                break
            shift = True  # score once more
        shift = not safe
        if hidden is not None:
            total_.masked_fill_(total_ == 0, torch.inf)  # of rows that see nothing
        torch.bmm(p.mT, gather(vs, ids, hidden, values), out=out_).div_(total_[..., None])
    lse, top, weight = (to_tokens(x, q, x.dtype, walk.order) for x in (lse, top, 1 / total))
    return to_tokens(out, q, q.dtype, walk.order), lse, top, weight


@block_sparse_attention.register_fake
def _(q, k, v, *_):
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    rows = [q.new_empty(q.shape[:3], dtype=dtype) for _ in range(3)]
    return q.new_empty(*q.shape[:3], v.shape[3]), *rows


@torch.library.custom_op(
    "flexsparse::block_sparse_attention_backward", mutates_args=(), device_types="cpu"
)
def _backward(
    g: Tensor,
    g_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    shift: Tensor,
    weight: Tensor,
    lists: Sequence[Tensor | None],
    q_block: int,
    kv_block: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    walk = Walk(q, k, v, lists, q_block, kv_block, scores=2, chunk_bytes=BACKWARD_CHUNK)
    qs, gs, outs = (to_blocks(x, q_block, walk.order) for x in (q, g, out))
    rows = (x[..., None] for x in (shift, weight, g_lse))
    shift, weight, g_lse = (to_blocks(x, q_block, walk.order) for x in rows)
    ks, vs = (to_blocks(x, kv_block).flatten(1) for x in (k, v))
    blind = weight == 0  # a row that sees nothing, or that is none
    any_blind, shifts = bool(blind.any()), bool(shift.any())
    delta = (gs.to(walk.dtype) * outs).sum(-1, keepdim=True).sub_(g_lse).mul_(weight)
    delta.masked_fill_(blind, 0)

    dq = torch.empty(qs.shape, dtype=walk.dtype)
    dk, dv = (torch.zeros(x.shape, dtype=walk.dtype) for x in (ks, vs))
    rows = (x.split(walk.size) for x in (dq, qs, gs, weight, delta.mT, shift.mT, blind))
    for (ids, hidden, buffers), dq_, q_, g_, weight_, delta_, shift_, blind_ in zip(walk, *rows):
        if not ids.shape[0]:
            dq_.zero_()
            continue
        keys, values, p, ds = buffers
        q_, g_ = q_.to(walk.dtype), g_ * weight_
        if any_blind:  # 0 times NaN is not 0
            q_, g_ = (x.masked_fill(blind_, 0) for x in (q_, g_))

        # keys and values share memory, for what is gathered and for the gradients to be scattered
        torch.bmm(gather(vs, ids, hidden, values), g_.mT, out=ds)
        gather(ks, ids, hidden, keys)
        p.baddbmm_(keys, q_.mT, beta=0, alpha=scale if shifts else scale * LOG2_E)
        if shifts:
            p.sub_(shift_).mul_(LOG2_E)
        p.exp2_()
        if hidden is not None:
            hidden.fill(p, 0)
        ds.sub_(delta_).mul_(p)

        dq_.baddbmm_(ds.mT, keys, beta=0, alpha=scale)
        keys.baddbmm_(ds, q_, beta=0, alpha=scale)
        dk.index_add_(0, ids, keys.view(ids.shape[0], -1))
        torch.bmm(p, g_, out=values)
        dv.index_add_(0, ids, values.view(ids.shape[0], -1))
    dk, dv = (x.view(-1, kv_block, x.shape[1] // kv_block) for x in (dk, dv))
    return (
        to_tokens(dq, q, q.dtype, walk.order),
        to_tokens(dk, k, k.dtype),
        to_tokens(dv, v, v.dtype),
    )


@_backward.register_fake
def _(g, g_lse, q, k, v, *_):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.q_block, ctx.kv_block, ctx.scale = inputs
    out, _, shift, weight = output
    ctx.mark_non_differentiable(shift, weight)
    ctx.save_for_backward(*tensors[:3], out, shift, weight, *tensors[3:])


def _differentiate(ctx, g, g_lse, *_):
    saved = ctx.saved_tensors  # asked for once: recomputation allows no more
    grads = _backward(g, g_lse, *saved[:6], saved[6:], ctx.q_block, ctx.kv_block, ctx.scale)
    return *grads, *[None] * 8


def _push_forward(results, inputs, tangents) -> list[Tensor | None]:
    (_, _, shift, weight), (q, k, v, *lists), blocks = results, inputs[:-3], inputs[-3:]
    given = *tangents[:3], q, k, v, shift, weight, *lists, *blocks
    return [*block_sparse_attention_jvp(*given), None, None]


block_sparse_attention.register_autograd(_differentiate, setup_context=_setup_context)
set_forward_mode(block_sparse_attention, _push_forward)
set_once(_backward)
