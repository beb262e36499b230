"""A choice of tiles as a BlockMask: its mask_mod, and its lists in both directions."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, noop_mask

from flexsparse.selection import tile_map
from flexsparse.tiling import VideoTiling

_FIXED = "a mask of tiles cannot be {}: build it from the q and k that it is for"


class TileBlockMask(BlockMask):
    """A BlockMask whose key blocks are the tiles of ``tiling``, and whose query blocks are the
    rows that stand for one tile or for a few adjacent ones: within a listed block only padding of
    the key tile is masked. It cannot be sliced, cropped or moved: its lists are narrow, and its
    mask_mod holds tensors."""

    tiling: VideoTiling | None = None
    all_queries: bool = True
    """Whether queries are laid out as keys are, padding included."""

    def __getitem__(self, index: Any) -> Any:
        raise NotImplementedError(_FIXED.format("sliced"))

    def _adjust(self, new_q_len: int, new_kv_len: int) -> Any:
        raise NotImplementedError(_FIXED.format("cropped"))

    def to(self, device: torch.device | str) -> Any:
        raise NotImplementedError(_FIXED.format("moved to another device"))

    def within_tiles(self) -> BlockMask:
        """The same lists with a ``mask_mod`` that knows padding only.

        Only for kernels that walk the lists, which settle the choice of tiles: it saves them a load
        for every pair of tokens in a partial block. Where all tiles have equally many tokens there
        is one list instead of two, and with it one loop in the kernel, without a load for padding.
        """
        tiling = self.tiling
        assert tiling is not None, "only a mask made by tile_block_mask has tiles"
        rows, volume = tiling.rows, math.prod(tiling.tile)
        counts = tiling.counts(self.kv_num_blocks.device) if tiling.is_ragged else None

        def in_tile(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            return kv % rows < (volume if counts is None else counts[kv // rows])

        names = "kv_num_blocks", "kv_indices", "q_num_blocks", "q_indices"
        lists: Any = {name: getattr(self, name) for name in names}
        full: Any = {f"full_{name}": getattr(self, f"full_{name}") for name in names}
        if not tiling.has_padding:
            lists = {name: full[f"full_{name}"] for name in names}
            full = dict.fromkeys(full)
        mask_mod = in_tile if tiling.has_padding else noop_mask
        given: Any = dict(BLOCK_SIZE=self.BLOCK_SIZE, mask_mod=mask_mod)
        return BlockMask(self.seq_lengths, **lists, **full, **given)

    def to_dense(self) -> Tensor:
        """Which key blocks every query block visits: int32 ``[B, H, nq, nk]`` of 0 and 1.

        torch's version takes the width of the lists for the number of key blocks."""
        width = -(-self.seq_lengths[1] // self.BLOCK_SIZE[1])
        dense = _to_map(self.kv_num_blocks, self.kv_indices, width)
        if self.full_kv_num_blocks is not None and self.full_kv_indices is not None:
            dense = dense | _to_map(self.full_kv_num_blocks, self.full_kv_indices, width)
        return dense.int()


def tile_block_mask(
    selected: Tensor,
    tiling: VideoTiling,
    *,
    counts: Tensor | None = None,
    q_rows: int | None = None,
    query_tiles: int = 1,
) -> TileBlockMask:
    """The BlockMask in which each query block attends to its selected key tiles.

    Its ``mask_mod`` alone is the whole mask, tile choice and padding of keys; the lists are an
    index into it, in both directions (for inference, under ``no_grad``, in the forward direction
    alone). Key tiles with padding are partial blocks, the others full ones. Nothing is read back
    from the device.

    Args:
        selected: int32 ``[B, H, ceil(n / query_tiles), k]``, distinct tiles in ascending order per
            query block.
        tiling: the shape; ``n = tiling.num_tiles``.
        counts: int32 ``[B, H, ceil(n / query_tiles)]``, how many of the k entries count; None for
            all.
        q_rows: rows of queries for a tile, where queries are not laid out as keys are.
        query_tiles: adjacent tiles whose queries make a block; the last block may have fewer.

    Returns:
        A BlockMask of ``BLOCK_SIZE == (query_tiles * q_rows, rows)`` over ``n * q_rows`` queries
        and ``padded_tokens`` keys.
    """
    n, rows, device = tiling.num_tiles, tiling.rows, selected.device
    per_tile = rows if q_rows is None else q_rows
    q_block = query_tiles * per_tile
    chosen = tile_map(selected, n) if counts is None else _to_map(counts, selected, n)
    valid = tiling.counts(device)
    # Inductor (2.11, on CUDA) takes zeros that were scattered into, captured by a mask_mod, for
    # zeros; what is computed from them it reads.
    captured = chosen & (selected[..., :1] >= 0)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return captured[b, h, q // q_block, kv // rows] & (kv % rows < valid[kv // rows])

    is_full = valid == rows
    partial, full = _forward_lists(selected, counts, is_full, tiling)
    by_key = _transposed_lists(chosen, is_full, tiling) if torch.is_grad_enabled() else (None,) * 4
    lists: Any = (*partial, *full, *by_key)
    mask = TileBlockMask(
        (n * per_tile, tiling.padded_tokens),
        *lists,
        BLOCK_SIZE=(q_block, rows),
        mask_mod=mask_mod,
    )
    mask.tiling, mask.all_queries = tiling, q_rows is None
    return mask


def _forward_lists(
    selected: Tensor, counts: Tensor | None, is_full: Tensor, tiling: VideoTiling
) -> tuple[Any, Any]:
    """(counts, indices) of partial and of full key tiles, each ``k`` wide.

    Where there are both, the CUDA kernels find a row of either by the strides of the partial list:
    the two must have one width, or full tiles are read from anywhere.
    """
    n, k = tiling.num_tiles, selected.shape[-1]
    every = selected.new_full(selected.shape[:-1], k) if counts is None else counts
    if not tiling.has_padding:
        none = torch.zeros_like(selected)
        return (torch.zeros_like(every), _widen(none, tiling)), (every, selected)
    if tiling.full_tiles == 0:
        return (every, _widen(selected, tiling)), (None, None)
    # One sort puts the full tiles before the ragged ones, both ascending, and the uncounted last.
    kind = (~is_full[selected.long()]).int()
    if counts is not None:
        kind = torch.where(torch.arange(k, device=kind.device) < counts[..., None], kind, 2)
    order = (selected + n * kind).sort(-1).values % n
    num_full = (kind == 0).sum(-1, dtype=torch.int32)
    last = torch.arange(k, device=selected.device) + num_full[..., None]
    partial = order.gather(-1, last.clamp(max=k - 1)).int()
    return (every - num_full, _widen(partial, tiling)), (num_full, order.int())


def _to_map(num: Tensor, indices: Tensor, width: int) -> Tensor:
    """Lists to a bool map: entries past a row's count land past the end."""
    listed = torch.arange(indices.shape[-1], device=num.device) < num[..., None]
    return tile_map(torch.where(listed, indices, width), width + 1)[..., :width]


def _widen(indices: Tensor, tiling: VideoTiling) -> Tensor:
    """On CPU, torch's compiled kernel refuses partial lists narrower than the number of tiles."""
    if indices.device.type != "cpu":
        return indices
    return F.pad(indices, (0, tiling.num_tiles - indices.shape[-1]))


def _transposed_lists(chosen: Tensor, is_full: Tensor, tiling: VideoTiling) -> tuple[Any, ...]:
    """The query blocks of every key tile, for the backward kernels: partial, then full lists, of
    one width for the same reason as the forward ones."""
    by_key = chosen.transpose(-1, -2)
    n = by_key.shape[-1]
    rank = by_key.cumsum(-1, dtype=torch.int32)
    total = rank[..., -1].contiguous()
    slot = torch.where(by_key, rank - 1, n).long()  # those not chosen write past the end
    blocks = torch.arange(n, dtype=torch.int32, device=chosen.device).expand_as(slot)
    indices = blocks.new_zeros((*slot.shape[:-1], n + 1)).scatter_(-1, slot, blocks)
    indices = indices[..., :n].contiguous()
    if not tiling.has_padding:
        return torch.zeros_like(total), torch.zeros_like(indices), total, indices
    if tiling.full_tiles == 0:
        return total, indices, None, None
    return torch.where(is_full, 0, total), indices, torch.where(is_full, total, 0), indices.clone()
