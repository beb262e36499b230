"""FlexAttention with a score_mod on the CPU: differentiable PyTorch over the blocks a mask lists.

A custom operator cannot take a Python function. So a few query blocks at a time gather the key
blocks in their lists, score them, let score_mod change the scores, and weigh the values, under
activation checkpointing: the forward keeps no scores, the backward makes those of a chunk again,
and what score_mod captures has its gradient from autograd, like any other tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest, BlockMask, noop_mask
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from flexsparse.checks import can_be_read
from flexsparse.choice.block_mask import TileBlockMask
from flexsparse.torch_names import is_functorch_wrapped_tensor, tree_leaves

arange = partial(torch.arange, device="cpu")  # whatever the default device is
CHUNK = 8 << 20  # bytes of scores: more of them leave the cache, fewer make calls many
# In a compiled graph each chunk is code of its own, seconds of compilation: larger ones, and few.
COMPILED_CHUNK, COMPILED_CHUNKS = 64 << 20, 8


@torch.autocast("cpu", enabled=False)
def score_mod_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    score_mod: Callable[..., Tensor],
    mask: BlockMask | None,
    scale: float,
    wanted: AuxRequest,
) -> tuple[Tensor, AuxOutput]:
    """torch's ``flex_attention``, differentiable in q, k, v and in what ``score_mod`` captures.

    q [B, Hq, Lq, D], k [B, Hkv, Lk, D], v [B, Hkv, Lk, Dv] -> out [B, Hq, Lq, Dv] in q's dtype, and
    what is ``wanted`` of max_scores and lse, fp32, or fp64 for fp64, as are the scores that
    ``score_mod`` is given. A row that sees nothing has out 0, lse and max_scores -inf, and no
    gradient; max_scores never has one.

    For a hidden pair ``score_mod`` is given a score that its row has elsewhere: it needs a finite
    slope where pairs are seen, and no other. The hidden pair's indices it is given as they are.

    Memory is that of a chunk, and of a gradient of what ``score_mod`` captures. Each chunk makes
    such a gradient: one of a bias ``[H, Lq, Lk]`` takes time as its size squared. Under
    torch.compile chunks are larger, an eighth of the whole at least, and as wide as the lists may
    be: the graph holds the code of each, and cannot ask lists for their length.

    Raises:
        RuntimeError: in the backward, what ``score_mod`` or the mask captures was changed in place
            since the forward.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    (batch, heads, q_len, dim), (kv_heads, k_len) = q.shape, k.shape[1:3]
    q_block, kv_block = (64, 64) if mask is None else mask.BLOCK_SIZE
    nq, nk, groups = -(-q_len // q_block), -(-k_len // kv_block), batch * kv_heads

    def blocks(x: Tensor, count: int, size: int) -> Tensor:
        x = F.pad(x.to(dtype), (0, 0, 0, count * size - x.shape[2]))
        return x.expand(batch, -1, -1, -1).reshape(groups, -1, size, x.shape[3])

    ids, mask_mod = _lists(mask, nk)
    holds_query = _holds_query(mask, q_len)
    ids = ids.expand(batch, heads, nq, -1).reshape(groups, -1, ids.shape[-1])
    place = torch.meshgrid(*(arange(x) for x in (batch, heads, nq)), indexing="ij")
    rows = blocks(q, nq, q_block) * scale, ids, *(x.reshape(groups, -1) for x in place)
    keys_and_values = (blocks(x, nk + 1, kv_block) for x in (k, v))  # block nk holds zeros

    def attend(ks: Tensor, vs: Tensor, *rows: Tensor) -> list[Tensor]:
        """Query blocks [G, R, ..] to key blocks [G, nk + 1, ..] of the heads that they read."""
        shape = rows[0].shape[:2]
        qs, ids, b, h, block = (x.flatten(0, 1) for x in rows)
        first = arange(shape[0]).repeat_interleave(shape[1]) * (nk + 1)
        taken = (ids + first[:, None]).flatten()
        keys, values = (
            x.flatten(0, 1).index_select(0, taken).view(len(ids), -1, x.shape[-1]) for x in (ks, vs)
        )
        i = block[:, None] * q_block + arange(q_block)
        j = (ids[..., None] * kv_block + arange(kv_block)).flatten(1)
        at = b, h, i.clamp(max=q_len - 1), j.clamp(max=k_len - 1)
        see = (j < k_len)[:, None] & (i < q_len)[..., None]
        if holds_query is not None:
            see = see & holds_query[b[:, None] % len(holds_query), at[2]][..., None]
        if mask_mod is not None:
            with inside(*at):
                see = see & _of_pairs(mask_mod, at)
        # what is hidden may be NaN, or be where score_mod has no slope
        scores = _seen_elsewhere(qs @ keys.mT, see)
        with inside(*at, scores):
            scores = _of_pairs(score_mod, at, scores).to(dtype)
        scores = _fill(scores, ~see, -torch.inf)
        top = scores.detach().amax(-1, keepdim=True)
        blind = top == -torch.inf
        scores = _fill(scores, blind, 0)  # whose softmax is no NaN
        results = [_fill(scores.softmax(-1) @ values, blind, 0), top]
        if wanted.lse:
            results.append(_fill(scores.logsumexp(-1, keepdim=True), blind, -torch.inf))
        return [x.unflatten(0, shape) for x in results]

    # A chunk's backward makes gradients of all keys of its heads: they should be the smaller part.
    compiled, width = torch.compiler.is_compiling(), _width(ids, nk)
    cells = width * kv_block * q_block
    memory, least = (CHUNK, 1)
    if compiled:
        memory, least = COMPILED_CHUNK, -(-ids.shape[:2].numel() // COMPILED_CHUNKS)
    size = max(least, memory // (cells * dtype.itemsize), nk * kv_block * dim // cells)
    n_groups, n_rows = max(1, size // ids.shape[1]), min(size, ids.shape[1])
    # Compiled, a mode cannot begin within a checkpoint; in eager mode, a backward needs it there.
    captured: dict[int, tuple[Tensor, int]] = {}
    outside = _Indexing() if compiled else nullcontext()

    def inside(*given: Tensor) -> Any:
        return nullcontext() if compiled else _Unchanged(captured, given)

    results = []
    with outside:
        for *kv, qs, ids, b, h, block in zip(
            *(x.split(n_groups) for x in (*keys_and_values, *rows))
        ):
            chunks = []
            for qs_, ids_, *at in zip(*(x.split(n_rows, 1) for x in (qs, ids, b, h, block))):
                given = *kv, qs_, ids_[..., : _width(ids_, nk)], *at
                options: Any = dict(use_reentrant=False, preserve_rng_state=False)
                chunks.append(checkpoint(attend, *given, **options))
            results.append([torch.cat(x, 1) for x in zip(*chunks)])
    out, top, *lse = (
        torch.cat(x).reshape(batch, heads, nq * q_block, -1)[:, :, :q_len] for x in zip(*results)
    )
    lse = lse[0].squeeze(-1) if lse else None
    aux = AuxOutput(lse, top.squeeze(-1) if wanted.max_scores else None)
    return out.to(q.dtype).contiguous(), aux


def _lists(mask: BlockMask | None, nk: int) -> tuple[Tensor, Callable[..., Tensor] | None]:
    """The key blocks of each query block, int64 [.., W], ``nk`` for none; what is seen of them."""
    if mask is None:
        return arange(nk), None
    tiles = False
    if isinstance(mask, TileBlockMask) and mask.tiling is not None:
        tiles, mask = True, mask.within_tiles()
    pairs = (
        (mask.kv_num_blocks, mask.kv_indices),
        (mask.full_kv_num_blocks, mask.full_kv_indices),
    )
    lists = [
        torch.where(arange(idx.shape[-1]) < num[..., None], idx, nk)
        for num, idx in pairs
        if num is not None and idx is not None
    ]
    # A row of tiles has no more blocks than either list can hold.
    width = min(x.shape[-1] for x in lists) if tiles else nk
    ids = torch.cat(lists, -1).long().sort(-1).values[..., :width]
    return ids, None if mask.mask_mod is noop_mask else mask.mask_mod


def _holds_query(mask: BlockMask | None, q_len: int) -> Tensor | None:
    """Which rows of queries hold a token, bool ``[B or 1, Lq]``; None where all do."""
    if not isinstance(mask, TileBlockMask) or mask.tiling is None or not mask.all_queries:
        return None
    if mask.text_lengths is None and not mask.tiling.has_padding:
        return None
    return mask.tiling.valid(mask.kv_num_blocks.device, mask.text_lengths).view(-1, q_len)


def _seen_elsewhere(scores: Tensor, see: Tensor) -> Tensor:
    """Scores with, where a pair is hidden, the best that its row sees; else of any row; else 1."""
    if can_be_read(see) and see.all():
        return scores
    best = scores.detach().masked_fill(~see, -torch.inf).amax(-1, keepdim=True)
    some = best.max()
    best = torch.where(best.isfinite(), best, torch.where(some.isfinite(), some, 1))
    return torch.where(see, scores, best)


def _width(ids: Tensor, nk: int) -> int:
    """The longest of some lists, at least 1; under torch.compile, what it may be."""
    return max(1, int((ids < nk).sum(-1).max())) if can_be_read(ids) else ids.shape[-1]


def _fill(x: Tensor, where: Tensor, value: float) -> Tensor:
    return x if can_be_read(where) and not where.any() else x.masked_fill(where, value)


def _of_pairs(function: Callable[..., Tensor], at: tuple[Tensor, ...], *scores: Tensor) -> Tensor:
    """score_mod or mask_mod, which are written for one query and one key, of [N, queries, keys]."""
    for pair in (None, None, None, 0), (None, None, 0, None), (0, 0, 0, 0):
        function = torch.vmap(function, in_dims=(*(0 for _ in scores), *pair))
    return function(*scores, *at)


class _Indexing(TorchFunctionMode):
    """``x[h, i]`` of tensors without dimensions: PyTorch would read them, which vmap forbids."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.Tensor.__getitem__:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if all(isinstance(x, Tensor) for x in index):
                return torch.ops.aten.index(args[0], index)
        return func(*args, **(kwargs or {}))


class _Unchanged(_Indexing):
    """The same, and what a forward captures must be what its recomputation captures: autograd
    knows of saved tensors that they were changed in place, and of these it has none."""

    def __init__(self, captured: dict[int, tuple[Tensor, int]], given: Iterable[Tensor]) -> None:
        super().__init__()
        self._captured, self._made = captured, {id(x): x for x in given}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        for x in tree_leaves((args, kwargs)):
            if (
                isinstance(x, Tensor)
                and id(x) not in self._made
                and not is_functorch_wrapped_tensor(x)
                and not x.is_inference()  # which has no version, and no backward reads
            ):
                _, version = self._captured.setdefault(id(x), (x, x._version))
                if version != x._version:
                    raise RuntimeError(
                        f"a tensor {list(x.shape)} that score_mod or the mask captures was changed "
                        "in place after the forward, and the backward reads it again: change a "
                        "copy of it, or call backward first"
                    )
        out = super().__torch_function__(func, types, args, kwargs)
        self._made |= {id(x): x for x in tree_leaves(out) if isinstance(x, Tensor)}
        return out
