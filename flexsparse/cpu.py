"""FlexAttention with a BlockMask on the CPU, forward and backward, from ATen calls alone.

Query blocks of all batches and heads form one sequence of rows, walked in chunks so small that the
gathered key blocks and their scores stay in cache. The forward keeps the log-sum-exp; the backward
gathers and scores again, and adds the gradients of the gathered blocks back by index.

    s = scale k q^T      p = exp(s - lse)                            out = p^T v
    dv = p g             ds = p (v g^T - rowsum(g out) + g_lse)
    dq = scale ds^T k    dk = scale ds q

Scores stand keys by queries: most of the products then read their operands in memory order.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 2 << 20  # what one thread gathers and scores at a time: a core's cache
SAFE = 40.0  # a row whose |lse| is below needs no shift: exp and its sums stay in fp32's range


def _blocks(x: Tensor, size: int) -> Tensor:
    """[B, H, L, D] -> [B * H * ceil(L / size), size, D], zero-padded."""
    pad = -x.shape[2] % size
    x = F.pad(x, (0, 0, 0, pad)) if pad else x.contiguous()
    return x.view(-1, size, x.shape[3])


def _tokens(x: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of `_blocks`, for batch, heads and length of `like`, and in `dtype`."""
    batch, heads, length = like.shape[:3]
    return x.view(batch, heads, -1, *x.shape[2:])[:, :, :length].to(dtype).contiguous()


class _Walk:
    """The way of one call: it owns the memory that chunks gather and score in, used over and over.

    Iterating gives, for each `size` rows (the last chunk may have less), the gathered blocks' places
    among all key blocks, int64 [n * width]; what must not be seen, bool [n, keys, q_block or 1], or
    None; and buffers [n, keys, D], [n, keys, Dv] and `scores` times [n, keys, q_block].
    """

    def __init__(self, q, k, v, lists, q_block: int, kv_block: int, scores: int):
        full_num, full_idx, partial_num, partial_idx, self.see = lists
        batch, heads, q_len, dim = q.shape
        self.grid = batch, heads, -(-q_len // q_block), -(-k.shape[2] // kv_block)
        self.k_len, self.kv_block = k.shape[2], kv_block
        self.dtype = torch.float64 if q.dtype == torch.float64 else torch.float32

        # one list: full blocks (kind 0), then partial ones (1), then stand-ins (2), to be hidden
        blocks, kinds = [], []
        for kind, (num, idx) in enumerate(((full_num, full_idx), (partial_num, partial_idx))):
            if num is not None:
                live = torch.arange(idx.shape[-1]) < num[..., None]
                kinds.append(self._rows(torch.where(live, kind, 2)))
                blocks.append(self._rows(idx))
        self.kind, order = torch.cat(kinds, -1).sort(stable=True)
        blocks = torch.cat(blocks, -1).gather(-1, order)
        self.blocks = blocks.masked_fill_(self.kind == 2, 0).long()
        first = torch.arange(batch * heads) // (heads // k.shape[1]) * self.grid[3]
        self.ids = self.blocks + first.repeat_interleave(self.grid[2])[:, None]

        count = (self.kind < 2).sum(-1)
        widest = max(1, int(count.max()))
        self.sizes = [dim, v.shape[3], *[q_block] * scores]
        row = widest * kv_block * sum(self.sizes) * self.dtype.itemsize
        self.size = min(torch.get_num_threads() * max(1, CHUNK_BYTES // row), len(count))
        self.memory = [
            torch.empty(self.size * widest * kv_block * n, dtype=self.dtype) for n in self.sizes
        ]
        pad = (0, -len(count) % self.size)
        width = F.pad(count, pad).view(-1, self.size).amax(-1)
        special = (self.kind == 1).any(-1) | (count < width.repeat_interleave(self.size)[: len(count)])
        if self.k_len % kv_block:
            special |= (self.blocks == self.grid[3] - 1).any(-1)
        self.width = width.tolist()
        self.special = F.pad(special, pad).view(-1, self.size).any(-1).tolist()

    def _rows(self, x: Tensor) -> Tensor:
        return x.expand(*self.grid[:2], *x.shape[2:]).flatten(0, 2)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None, list[Tensor]]]:
        views: dict[tuple[int, int], list[Tensor]] = {}
        for i, (ids, width) in enumerate(zip(self.ids.split(self.size), self.width)):
            n, keys = len(ids), width * self.kv_block
            if (n, keys) not in views:
                views[n, keys] = [
                    m[: n * keys * d].view(n, keys, d) for m, d in zip(self.memory, self.sizes)
                ]
            hide = self._hidden(i * self.size, n, width) if self.special[i] else None
            yield ids[:, :width].reshape(-1), hide, views[n, keys]

    def _hidden(self, start: int, n: int, width: int) -> Tensor:
        block, kind = (x[start : start + n, :width] for x in (self.blocks, self.kind))
        key = block[..., None] * self.kv_block + torch.arange(self.kv_block)
        hide = ((kind == 2)[..., None] | (key >= self.k_len))[..., None]  # [n, width, kv_block, 1]
        if self.see is not None:
            batch, heads, nq, nk = self.grid
            row = torch.arange(start, start + n)[:, None]
            see = self.see.expand(batch, heads, nq, nk, -1, self.kv_block)
            see = see[row // (heads * nq), row // nq % heads, row % nq, block].mT
            hide = hide | (kind == 1)[..., None, None] & ~see
        return hide.flatten(1, 2)


def _gather(blocks: Tensor, ids: Tensor, hide: Tensor | None, out: Tensor) -> Tensor:
    """Key blocks into `out` [n, keys, D]; keys that the whole query block can't see are 0 there."""
    blocks = blocks.flatten(1)
    if blocks.dtype == out.dtype:
        torch.index_select(blocks, 0, ids, out=out.view(len(ids), -1))
    else:
        out.copy_(blocks.index_select(0, ids).view_as(out))
    return out if hide is None else out.masked_fill_(hide.all(-1, keepdim=True), 0)


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
) -> tuple[Tensor, Tensor]:
    """Attention of each query block to the key blocks in its lists; differentiable in q, k and v.

    q [B, Hq, Lq, D], k [B, Hkv, Lk, D], v [B, Hkv, Lk, Dv] -> out [B, Hq, Lq, Dv] in q's dtype and
    lse [B, Hq, Lq], the natural log-sum-exp, fp32, or fp64 for fp64. Query head h reads key head
    h // (Hq // Hkv). Lengths need not fill the last block. Half precision is computed in fp32.

    full_num int [B or 1, Hq or 1, nq] and full_idx int [.., nq, W]: query block i sees all of the
    key blocks full_idx[.., i, :full_num[.., i]], each listed once; the rest may hold anything.
    partial_num and partial_idx likewise, seen through partial_mask, bool, broadcastable to [B, Hq,
    nq, nk, q_block, kv_block], indexed by query and key block. One of the two pairs may be None.
    A row that sees nothing has out 0, lse -inf and no gradient. A key that one row of a query block
    sees must be finite for the others to be; one that none sees may be anything.
    """
    lists = full_num, full_idx, partial_num, partial_idx, partial_mask
    walk = _Walk(q, k, v, lists, q_block, kv_block, scores=1)
    qs, ks, vs = _blocks(q, q_block), _blocks(k, kv_block), _blocks(v, kv_block)
    out = torch.empty(*qs.shape[:2], v.shape[3], dtype=walk.dtype)
    lse = torch.empty(qs.shape[:2], dtype=walk.dtype)
    shift = False  # subtract each row's maximum: slower, and only large logits need it
    rows = (x.split(walk.size) for x in (qs, out, lse))
    for (ids, hide, (keys, values, p)), q_, out_, lse_ in zip(walk, *rows):
        if not len(ids):
            out_.zero_()
            lse_.fill_(-torch.inf)
            continue
        q_ = q_.to(walk.dtype)
        _gather(ks, ids, hide, keys)
        while True:
            p.baddbmm_(keys, q_.mT, beta=0, alpha=scale)
            if hide is not None:
                p.masked_fill_(hide, -torch.inf)
            if shift:
                top = p.amax(1)
                p.sub_(top.masked_fill_(top == -torch.inf, 0)[:, None])
            total = p.exp_().sum(1)
            torch.log(total, out=lse_)
            if shift:
                lse_ += top
            safe = bool(lse_.abs().amax() <= SAFE)
            if safe or shift:
                break
            shift = True  # and once more
        shift = not safe
        if hide is not None:
            total.masked_fill_(total == 0, 1)
        _gather(vs, ids, hide, values)
        torch.bmm(p.mT, values, out=out_).div_(total[..., None])
    return _tokens(out, q, q.dtype), _tokens(lse, q, lse.dtype)


@block_sparse_attention.register_fake
def _(q, k, v, *_):
    lse = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3], dtype=lse)


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
    lse: Tensor,
    full_num: Tensor | None,
    full_idx: Tensor | None,
    partial_num: Tensor | None,
    partial_idx: Tensor | None,
    partial_mask: Tensor | None,
    q_block: int,
    kv_block: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    lists = full_num, full_idx, partial_num, partial_idx, partial_mask
    walk = _Walk(q, k, v, lists, q_block, kv_block, scores=2)
    ks, vs = _blocks(k, kv_block), _blocks(v, kv_block)
    by_row = [_blocks(x, q_block) for x in (q, g, out, lse[..., None], g_lse[..., None])]
    dq = torch.empty(by_row[0].shape, dtype=walk.dtype)
    dk, dv = (torch.zeros(x.shape, dtype=walk.dtype) for x in (ks, vs))
    dk_flat, dv_flat = dk.flatten(1), dv.flatten(1)
    rows = (x.split(walk.size) for x in (dq, *by_row))
    for (ids, hide, (keys, values, p, ds)), dq_, q_, g_, out_, lse_, g_lse_ in zip(walk, *rows):
        if not len(ids):
            dq_.zero_()
            continue
        q_, g_ = q_.to(walk.dtype), g_.to(walk.dtype)
        if hide is not None:  # rows that see nothing must not give anything, NaN included
            blind = lse_ == -torch.inf
            q_, g_, lse_, g_lse_ = (x.masked_fill(blind, 0) for x in (q_, g_, lse_, g_lse_))
        safe = bool(lse_.abs().amax() <= SAFE)
        if safe:  # p comes without its factor exp(-lse), and g with it
            weight = lse_.neg().exp_()
            g_, g_lse_ = g_ * weight, g_lse_ * weight
        delta = (g_ * out_).sum(-1, keepdim=True).sub_(g_lse_)

        p.baddbmm_(_gather(ks, ids, hide, keys), q_.mT, beta=0, alpha=scale)
        p.exp_() if safe else p.sub_(lse_.mT).exp_()
        if hide is not None:
            p.masked_fill_(hide, 0)
        torch.bmm(_gather(vs, ids, hide, values), g_.mT, out=ds).sub_(delta.mT).mul_(p)

        torch.bmm(p, g_, out=values)
        dv_flat.index_add_(0, ids, values.view(len(ids), -1))
        dq_.baddbmm_(ds.mT, keys, beta=0, alpha=scale)
        keys.baddbmm_(ds, q_, beta=0, alpha=scale)
        dk_flat.index_add_(0, ids, keys.view(len(ids), -1))
    return _tokens(dq, q, q.dtype), _tokens(dk, k, k.dtype), _tokens(dv, v, v.dtype)


@_backward.register_fake
def _(g, g_lse, q, k, v, *_):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.q_block, ctx.kv_block, ctx.scale = inputs
    ctx.save_for_backward(*tensors[:3], *output, *tensors[3:])


def _differentiate(ctx, g, g_lse):
    grads = _backward(g, g_lse, *ctx.saved_tensors, ctx.q_block, ctx.kv_block, ctx.scale)
    return *grads, *[None] * 8


block_sparse_attention.register_autograd(_differentiate, setup_context=_setup_context)
