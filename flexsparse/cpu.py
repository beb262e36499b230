"""FlexAttention with a BlockMask on the CPU, forward and backward, from ATen calls alone.

Query blocks of all batches and heads form one sequence of rows, walked in chunks so small that the gathered key blocks
and their scores stay in cache. The forward keeps the log-sum-exp; the backward gathers and scores again, and adds the
gradients of the gathered blocks back by index.

    s = scale q k^T      p = exp(s - lse)      out = p v
    dv = p^T g           ds = p (g v^T - rowsum(g out) + g_lse)
    dq = scale ds k      dk = scale ds^T q
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 4 << 20  # gathered keys, values and scores of one chunk
SAFE_LOGIT = 40.0  # exp(+-40) summed over all keys is far from fp32's limits: no row maximum needed


class _Chunk(NamedTuple):
    rows: slice
    ids: Tensor  # [n * width] key blocks, counted through all batches and heads
    hide: (
        Tensor | None
    )  # bool [n, 1 or q_block, width * kv_block]: the keys that a row must not see
    small: bool  # no |logit| is above SAFE_LOGIT


def _blocks(x: Tensor, size: int) -> Tensor:
    """[B, H, L, D] -> [B * H * ceil(L / size), size, D], zero-padded."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % size)).contiguous().view(-1, size, x.shape[3])


def _tokens(x: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of `_blocks` for batch, heads and length of `like`: [B * H * n, size, ...] -> [B, H, L, ...]."""
    batch, heads, length = like.shape[:3]
    return x.view(batch, heads, -1, *x.shape[2:])[:, :, :length].to(dtype).contiguous()


def _block_bytes(q: Tensor, v: Tensor, q_block: int, kv_block: int, scores: int) -> int:
    """Memory of a chunk per gathered key block: keys, values and the scores."""
    return kv_block * (q.shape[-1] + v.shape[-1] + scores * q_block) * max(4, q.element_size())


def _chunks(
    q: Tensor,
    k: Tensor,
    lists: tuple[Tensor | None, ...],
    q_block: int,
    kv_block: int,
    scale: float,
    block_bytes: int,
) -> Iterator[_Chunk]:
    """Walk the query blocks; `block_bytes` is what one gathered key block takes."""
    (batch, heads, q_len, _), (kv_heads, k_len) = q.shape, k.shape[1:3]
    nq, nk = -(-q_len // q_block), -(-k_len // kv_block)

    def rows(x: Tensor) -> Tensor:
        return x.expand(batch, heads, *x.shape[2:]).flatten(0, 2)

    # One list: full blocks (kind 0), then partial ones (1), then stand-ins (2), which are hidden.
    indices, kinds = [], []
    for kind, (num, idx) in enumerate((lists[:2], lists[2:4])):
        if num is not None and idx is not None:
            live = torch.arange(idx.shape[-1]) < rows(num)[:, None]
            indices.append(rows(idx))
            kinds.append(torch.where(live, kind, 2))
    kind, order = torch.cat(kinds, -1).sort(stable=True)
    blocks = torch.cat(indices, -1).gather(-1, order).masked_fill_(kind == 2, 0).long()
    count = (kind < 2).sum(-1)
    special = (kind == 1) | (blocks == nk - 1) if k_len % kv_block else kind == 1
    head = torch.arange(batch)[:, None] * kv_heads + torch.arange(heads) // (heads // kv_heads)
    ids = blocks + nk * rows(head[:, :, None].expand(-1, -1, nq))[:, None]

    # |logit| <= scale |q| |k|; NaN shows in any case
    q_norm = torch.linalg.vector_norm(q, dim=-1).nan_to_num_(0.0, torch.inf)
    k_norm = torch.linalg.vector_norm(k, dim=-1).nan_to_num_(0.0, torch.inf).amax(-1)
    q_norm = F.pad(q_norm, (0, -q_len % q_block)).view(batch, heads, nq, q_block).amax(-1)
    bound = abs(scale) * q_norm * k_norm.repeat_interleave(heads // kv_heads, 1)[:, :, None]

    size = max(1, CHUNK_BYTES // (block_bytes * max(1, int(count.max()))))
    pad = (0, -len(count) % size)
    width = F.pad(count, pad).view(-1, size).amax(-1)
    special = special.any(-1) | (count < width.repeat_interleave(size)[: len(count)])
    masked = F.pad(special, pad).view(-1, size).any(-1).tolist()
    small = (F.pad(bound.flatten(), pad).view(-1, size).amax(-1) <= SAFE_LOGIT).tolist()
    for i, w in enumerate(width.tolist()):
        at = slice(i * size, min((i + 1) * size, len(count)))
        hide = None
        if masked[i]:
            here, kind_here = blocks[at, :w], kind[at, :w, None, None]
            key = here[..., None] * kv_block + torch.arange(kv_block)
            hide = (kind_here == 2) | (key >= k_len)[:, :, None]  # [n, w, 1, kv_block]
            if lists[4] is not None:
                see = lists[4].expand(batch, heads, nq, nk, -1, kv_block)
                row = torch.arange(at.start, at.stop)[:, None]
                see = see[row // (heads * nq), row // nq % heads, row % nq, here]
                hide = hide | (kind_here == 1) & ~see
            hide = hide.transpose(1, 2).flatten(2)
        yield _Chunk(at, ids[at, :w].reshape(-1), hide, small[i])


class _Scratch:
    """Memory that the chunks use again and again: one flat buffer per name."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.flat: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        size = math.prod(shape)
        if name not in self.flat or len(self.flat[name]) < size:
            self.flat[name] = torch.empty(size, dtype=self.dtype)
        return self.flat[name][:size].view(shape)

    def gather(self, name: str, blocks: Tensor, chunk: _Chunk) -> Tensor:
        """The chunk's blocks as [n, keys, D]; keys hidden from the whole query block are 0, be they NaN."""
        n, (size, dim) = chunk.rows.stop - chunk.rows.start, blocks.shape[1:]
        out = self(name, len(chunk.ids), size * dim)
        if blocks.dtype == out.dtype:
            torch.index_select(blocks.flatten(1), 0, chunk.ids, out=out)
        else:
            out.copy_(blocks.flatten(1).index_select(0, chunk.ids))
        out = out.view(n, len(chunk.ids) // n * size, dim)
        return out if chunk.hide is None else out.masked_fill_(chunk.hide.all(1)[..., None], 0)


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

    q [B, Hq, Lq, D], k [B, Hkv, Lk, D], v [B, Hkv, Lk, Dv] -> out [B, Hq, Lq, Dv] in q's dtype, lse [B, Hq, Lq] (natural
    logarithm; fp32, or fp64 for fp64). Query head h reads key head h // (Hq // Hkv). Lengths need not fill the last block.

    full_num int [B or 1, Hq or 1, nq] and full_idx int [.., nq, W]: row i sees the blocks full_idx[.., i, :full_num[.., i]]
    whole, each listed once; the rest of the row may hold anything. partial_num and partial_idx likewise, seen through
    partial_mask, bool, broadcastable to [B, Hq, nq, nk, q_block, kv_block] and indexed by query and key block. Either
    pair may be None. A row that sees nothing has out 0, lse -inf and no gradient. Half precision is computed in fp32.
    """
    lists = (full_num, full_idx, partial_num, partial_idx, partial_mask)
    take = _Scratch(q.dtype)
    qs, ks, vs = _blocks(q, q_block), _blocks(k, kv_block), _blocks(v, kv_block)
    out = torch.empty(*qs.shape[:2], v.shape[-1], dtype=q.dtype)
    lse = torch.empty(*qs.shape[:2], 1, dtype=take.dtype)
    for chunk in _chunks(
        q, k, lists, q_block, kv_block, scale, _block_bytes(q, v, q_block, kv_block, 1)
    ):
        here, n = chunk.rows, chunk.rows.stop - chunk.rows.start
        keys = take.gather("k", ks, chunk)
        s = torch.bmm(
            qs[here].to(take.dtype) * scale, keys.mT, out=take("s", n, q_block, keys.shape[1])
        )
        if chunk.hide is not None:
            s.masked_fill_(chunk.hide, -torch.inf)
        if chunk.small or not keys.shape[1]:
            top = torch.zeros(())
        else:
            top = s.amax(-1, keepdim=True)
            top.masked_fill_(top == -torch.inf, 0)
            s.sub_(top)
        total = s.exp_().sum(-1, keepdim=True)
        torch.add(total.log(), top, out=lse[here])
        total.masked_fill_(total == 0, 1)
        out[here] = torch.bmm(s, take.gather("v", vs, chunk)).div_(total)
    return _tokens(out, q, q.dtype), _tokens(lse[..., 0], q, lse.dtype)


@block_sparse_attention.register_fake
def _(q, k, v, *_):
    lse = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(*q.shape[:3], v.shape[-1]), q.new_empty(q.shape[:3], dtype=lse)


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
    lists = (full_num, full_idx, partial_num, partial_idx, partial_mask)
    take = _Scratch(q.dtype)
    qs, ks, vs = _blocks(q, q_block), _blocks(k, kv_block), _blocks(v, kv_block)
    gs, outs = _blocks(g, q_block), _blocks(out, q_block)
    lses, g_lses = _blocks(lse[..., None], q_block), _blocks(g_lse[..., None], q_block)
    dq = torch.empty(qs.shape, dtype=q.dtype)
    dk, dv = torch.zeros(ks.shape, dtype=take.dtype), torch.zeros(vs.shape, dtype=take.dtype)
    for chunk in _chunks(
        q, k, lists, q_block, kv_block, scale, _block_bytes(q, v, q_block, kv_block, 2)
    ):
        here, n = chunk.rows, chunk.rows.stop - chunk.rows.start
        blind = lses[here] == -torch.inf
        top = lses[here].masked_fill(blind, torch.inf)
        qc, gc = qs[here].to(take.dtype) * scale, gs[here].to(take.dtype)
        delta = (gc * outs[here]).sum(-1, keepdim=True).sub_(g_lses[here])
        if chunk.hide is not None:
            qc.masked_fill_(blind, 0)
            gc.masked_fill_(blind, 0)
            delta.masked_fill_(blind, 0)
        if chunk.small:  # p = exp(s) w, with the weight w of a row in g instead
            weight = top.neg().exp_()
            gc *= weight
            delta *= weight
        keys, values = take.gather("k", ks, chunk), take.gather("v", vs, chunk)
        p = torch.bmm(qc, keys.mT, out=take("p", n, q_block, keys.shape[1]))
        p = p.exp_() if chunk.small else p.sub_(top).exp_()
        if chunk.hide is not None:
            p.masked_fill_(chunk.hide, 0)
        ds = torch.bmm(gc, values.mT, out=take("ds", *p.shape)).sub_(delta).mul_(p)
        dq[here] = torch.bmm(ds, keys).mul_(scale)
        torch.bmm(p.mT, gc, out=values)
        dv.flatten(1).index_add_(0, chunk.ids, values.view(len(chunk.ids), kv_block * v.shape[-1]))
        torch.bmm(ds.mT, qc, out=keys)
        dk.flatten(1).index_add_(0, chunk.ids, keys.view(len(chunk.ids), kv_block * k.shape[-1]))
    return _tokens(dq, q, q.dtype), _tokens(dk, k, k.dtype), _tokens(dv, v, v.dtype)


@_backward.register_fake
def _(g, g_lse, q, k, v, *_):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.q_block, ctx.kv_block, ctx.scale = inputs
    ctx.save_for_backward(*tensors[:3], *output, *tensors[3:])


def _differentiate(ctx, g, g_lse):
    grads = _backward(g, g_lse, *ctx.saved_tensors, ctx.q_block, ctx.kv_block, ctx.scale)
    return *grads, *[None] * 8


block_sparse_attention.register_autograd(_differentiate, setup_context=_setup_context)
