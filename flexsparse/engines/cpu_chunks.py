"""How the CPU operator walks a BlockMask: chunks of query blocks, and what they gather.

Query blocks of all batches and heads form one sequence of rows, cut into chunks so small that the
gathered key blocks and their scores stay in cache. Scores stand keys by queries, so that hiding a
key from a query block is filling one row.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOG2_E = math.log2(math.e)


def to_blocks(x: Tensor, size: int, order: Tensor | None = None) -> Tensor:
    """[B, H, L, D] -> [B * H * ceil(L / size), size, D], zero-padded, in the order wanted."""
    pad = -x.shape[2] % size
    x = F.pad(x, (0, 0, 0, pad)) if pad else x.contiguous()
    x = x.view(-1, size, x.shape[3])
    return x if order is None else x.index_select(0, order)


def to_tokens(x: Tensor, like: Tensor, dtype: torch.dtype, order: Tensor | None = None) -> Tensor:
    """The inverse of :func:`to_blocks`, for batch, heads and length of `like`, and in `dtype`."""
    x = x if order is None else torch.empty_like(x).index_copy_(0, order, x)
    batch, heads, length = like.shape[:3]
    return x.view(batch, heads, -1, *x.shape[2:])[:, :, :length].to(dtype).contiguous()


class Hidden(NamedTuple):
    """What a chunk's rows must not see of its n * width gathered blocks."""

    keys: Tensor  # int64: of all their keys, those hidden from a whole row
    blocks: Tensor | None = None  # int64 [m]: the blocks that `cells` is for
    cells: Tensor | None = None  # bool [m, kv_block, q_block or 1]

    def fill(self, x: Tensor, value: float) -> None:
        x.flatten(0, 1).index_fill_(0, self.keys, value)
        if self.blocks is not None and self.cells is not None:
            x = x.view(-1, self.cells.shape[1], x.shape[2])
            part = x.index_select(0, self.blocks).masked_fill_(self.cells, value)
            x.index_copy_(0, self.blocks, part)


class Walk:
    """The way of one call: it owns the memory that chunks gather and score in, used over and over.

    Where rows list different numbers of blocks, they are taken in `order`, most blocks first: those
    of a chunk then list about as many. Iterating gives, for each `size` rows (the last chunk may
    have fewer), the places of the blocks
    to gather among all key blocks, int64 [n * width]; what is hidden of them, or None; and buffers
    [n, width * kv_block, d], for keys, for values in the same memory, and `scores` times for
    scores. Every thread may gather and score `chunk_bytes` at a time.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lists: Sequence[Tensor | None],
        q_block: int,
        kv_block: int,
        scores: int,
        chunk_bytes: int,
    ):
        full_num, full_idx, partial_num, partial_idx, see = lists
        (batch, heads, q_len, dim), (kv_heads, k_len) = q.shape, k.shape[1:3]
        nq, nk = -(-q_len // q_block), -(-k_len // kv_block)
        self.kv_block, self.nk = kv_block, nk
        self.padding = (torch.arange(nq * q_block) >= q_len).view(nq, 1, q_block)
        self.dtype = torch.float64 if q.dtype == torch.float64 else torch.float32

        # one list: full blocks (kind 0), then partial ones (1), then stand-ins (2), to be hidden
        blocks, kinds = [], []
        for kind, (num, idx) in enumerate(((full_num, full_idx), (partial_num, partial_idx))):
            if num is not None and idx is not None:
                kind = torch.where(torch.arange(idx.shape[-1]) < num[..., None], kind, 2)
                kinds.append(kind.expand(batch, heads, -1, -1).flatten(0, 2))
                blocks.append(idx.expand(batch, heads, -1, -1).flatten(0, 2))
        kind, order = torch.cat(kinds, -1).sort(stable=True)
        block = torch.cat(blocks, -1).gather(-1, order).masked_fill_(kind == 2, 0).long()
        kv_head = torch.arange(batch * heads) // (heads // kv_heads)
        self.ids = block + nk * kv_head.repeat_interleave(nq)[:, None]

        # what is hidden of whole columns depends on kind and block alone, or is left to `see`
        tail = (torch.arange(nk * kv_block) >= k_len).view(nk, kv_block)
        unseen, self.see = tail, None
        if see is not None:
            see = see[(None,) * (6 - see.dim())]
            if see.shape[:3].numel() * see.shape[4] == 1:
                unseen = tail | ~see[0, 0, 0, :, 0]
            else:
                self.see = see.expand(batch, heads, nq, nk, -1, kv_block)
        self.columns = torch.cat((tail, unseen, torch.ones_like(tail)))
        self.pattern = kind * nk + block

        count = (kind < 2).sum(-1)
        fewest, widest = int(count.min()), max(1, int(count.max()))
        self.order = None
        if fewest < widest:
            self.order = count.argsort(descending=True, stable=True)
            self.ids, self.pattern, kind, block, count = (
                x[self.order] for x in (self.ids, self.pattern, kind, block, count)
            )
        self.depths = [dim, v.shape[3], *[q_block] * scores]
        depths = max(self.depths[:2]), *self.depths[2:]
        row = widest * kv_block * sum(depths) * self.dtype.itemsize
        self.size = min(torch.get_num_threads() * max(1, chunk_bytes // row), len(count))
        cells = self.size * widest * kv_block
        memory = [torch.empty(cells * d, dtype=self.dtype) for d in depths]
        self.memory = memory[0], *memory

        def most(x: Tensor) -> Tensor:  # [rows] -> [chunks]
            return F.pad(x, (0, -len(x) % self.size)).view(-1, self.size).amax(-1)

        width = most(count)
        ragged = count < width.repeat_interleave(self.size)[: len(count)]
        special = ragged | ((kind == 1) | (block == nk - 1) & tail.any()).any(-1)
        self.width, self.special = width.tolist(), most(special.int()).tolist()

    def __iter__(self) -> Iterator[tuple[Tensor, Hidden | None, list[Tensor]]]:
        @cache
        def buffers(n: int, keys: int) -> list[Tensor]:
            return [m[: n * keys * d].view(n, keys, d) for m, d in zip(self.memory, self.depths)]

        for i, width in enumerate(self.width):
            rows = slice(i * self.size, (i + 1) * self.size)
            ids = self.ids[rows, :width]
            hidden = self._hidden(rows, width) if self.special[i] else None
            yield ids.reshape(-1), hidden, buffers(ids.shape[0], width * self.kv_block)

    def _hidden(self, rows: slice, width: int) -> Hidden:
        pattern = self.pattern[rows, :width].reshape(-1)
        hidden = self.columns.index_select(0, pattern)
        cells = partial = None
        if self.see is not None:
            partial = (pattern // self.nk == 1).nonzero().view(-1)
            row = rows.start + partial // width
            row = row if self.order is None else self.order[row]
            row = torch.unravel_index(row, self.see.shape[:3])
            cells = ~self.see[*row, pattern[partial] % self.nk].mT
            hidden[partial] |= (cells | self.padding[row[2]]).all(-1)
        return Hidden(hidden.view(-1).nonzero().view(-1), partial, cells)


def gather(blocks: Tensor, ids: Tensor, hidden: Hidden | None, out: Tensor) -> Tensor:
    """Key blocks [.., kv_block * D] to [n, keys, D], 0 where no row may see them, NaN or not."""
    if blocks.dtype == out.dtype:
        torch.index_select(blocks, 0, ids, out=out.view(ids.shape[0], -1))
    else:
        out.copy_(blocks.index_select(0, ids).view_as(out))
    if hidden is not None:
        out.flatten(0, 1).index_fill_(0, hidden.keys, 0)
    return out
