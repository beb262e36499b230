"""The forward-mode derivative of the CPU operator, over the same lists and chunks.

    ds = scale (dk q^T + k dq^T)      dlse = sum(p ds)      dout = p^T dv + (p (ds - dlse))^T v

Scores, keys by queries, are made again as in the backward, so that memory is that of a chunk.
"""

import torch
from torch import Tensor

from flexsparse.derivatives import set_once
from flexsparse.engines.cpu_chunks import LOG2_E, Walk, gather, to_blocks, to_tokens

CHUNK = 4 << 20  # bytes that a thread gathers and scores at a time


@torch.library.custom_op(
    "flexsparse::block_sparse_attention_jvp", mutates_args=(), device_types="cpu"
)
def block_sparse_attention_jvp(
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shift: Tensor,
    weight: Tensor,
    full_num: Tensor | None,
    full_idx: Tensor | None,
    partial_num: Tensor | None,
    partial_idx: Tensor | None,
    partial_mask: Tensor | None,
    q_block: int,
    kv_block: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Tangents of out and lse, of those of q, k and v; None stands for one of zeros."""
    lists = full_num, full_idx, partial_num, partial_idx, partial_mask
    walk = Walk(q, k, v, lists, q_block, kv_block, scores=2, chunk_bytes=CHUNK)
    dq = torch.zeros_like(q) if dq is None else dq
    qs, dqs = (to_blocks(x, q_block, walk.order) for x in (q, dq))
    shift, weight = (to_blocks(x[..., None], q_block, walk.order) for x in (shift, weight))
    ks, vs = (to_blocks(x, kv_block).flatten(1) for x in (k, v))
    dks, dvs = (None if x is None else to_blocks(x, kv_block).flatten(1) for x in (dk, dv))
    dout = torch.zeros(*qs.shape[:2], v.shape[3], dtype=walk.dtype)
    dlse = torch.zeros(shift.shape, dtype=walk.dtype)
    blind, shifts = weight == 0, bool(shift.any())  # rows that see nothing, or that are none
    rows = (x.split(walk.size) for x in (dout, dlse.mT, qs, dqs, shift.mT, blind))
    for (ids, hidden, buffers), dout_, dlse_, *queries, shift_, blind_ in zip(walk, *rows):
        if not ids.shape[0]:
            continue
        keys, values, p, ds = buffers  # keys and values share memory
        q_, dq_ = (x.to(walk.dtype).masked_fill(blind_, 0).mT for x in queries)
        gather(ks, ids, hidden, keys)
        p.baddbmm_(keys, q_, beta=0, alpha=scale if shifts else scale * LOG2_E)
        if shifts:
            p.sub_(shift_).mul_(LOG2_E)
        p.exp2_()
        if hidden is not None:
            hidden.fill(p, 0)
        # by its own sum, with which its rounding cancels, not by the forward's
        p.div_(p.sum(1, keepdim=True).masked_fill_(blind_.mT, 1))
        ds.baddbmm_(keys, dq_, beta=0, alpha=scale)
        if dks is not None:
            ds.baddbmm_(gather(dks, ids, hidden, keys), q_, alpha=scale)
        torch.sum(ds.mul_(p), 1, keepdim=True, out=dlse_)
        ds.addcmul_(p, dlse_, value=-1)
        torch.bmm(ds.mT, gather(vs, ids, hidden, values), out=dout_)
        if dvs is not None:
            dout_.baddbmm_(p.mT, gather(dvs, ids, hidden, values))
    dlse = to_tokens(dlse, q, walk.dtype, walk.order)[..., 0]
    return to_tokens(dout, q, q.dtype, walk.order), dlse


@block_sparse_attention_jvp.register_fake
def _(dq, dk, dv, q, k, v, shift, *_):
    return q.new_empty(*q.shape[:3], v.shape[3]), shift.new_empty(shift.shape)


set_once(block_sparse_attention_jvp)
