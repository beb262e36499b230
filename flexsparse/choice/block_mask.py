"""A choice of tiles as a BlockMask: its mask_mod, and its lists in both directions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, noop_mask

from flexsparse.choice.lists import block_lists, has_partial_tiles
from flexsparse.choice.selection import pack_bits, tile_map
from flexsparse.tiling import VideoTiling

_FIXED = "a mask of tiles cannot be {}: build it from the q and k that it is for"


class TileBlockMask(BlockMask):
    """A BlockMask whose key blocks are the tiles of ``tiling``, and whose query blocks are the
    rows that stand for one tile or for a few adjacent ones: within a listed block only padding of
    the key tile is masked. It cannot be sliced, cropped or moved: its lists are narrow, and its
    mask_mod holds tensors."""

    tiling: VideoTiling | None = None
    text_lengths: Tensor | None = None
    made_of: ChosenTiles | None = None
    """Of which the lists can be made again."""
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
        device, lengths = self.kv_num_blocks.device, self.text_lengths
        video_rows = tiling.video_rows
        ends = None if lengths is None else lengths + video_rows
        counts = tiling.counts(device, lengths) if tiling.is_ragged else None

        def in_tile(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            row, tile = remainder(kv, rows), quotient(kv, rows)
            if counts is not None:
                return row < (counts[tile] if lengths is None else counts[b, tile])
            if not tiling.text:
                return row < volume
            of_text = kv < (video_rows + tiling.text if ends is None else ends[b])
            of_video = (row < volume) | (kv >= video_rows)
            return of_text if volume == rows else of_video & of_text

        names = "kv_num_blocks", "kv_indices", "q_num_blocks", "q_indices"
        lists: Any = {name: getattr(self, name) for name in names}
        full: Any = {f"full_{name}": getattr(self, f"full_{name}") for name in names}
        some_partial = has_partial_tiles(tiling)
        if not some_partial:
            lists = {name: full[f"full_{name}"] for name in names}
            full = dict.fromkeys(full)
        mask_mod = in_tile if some_partial else noop_mask
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


@dataclass(frozen=True)
class ChosenTiles:
    """What a :class:`TileBlockMask` is made of, a thirtieth of the memory of its lists.

    Attributes:
        bits: int32 ``[B, H, blocks, ceil(n / 32)]``, a tile map with a bit for each entry, as
            :func:`flexsparse.choice.choose.choose_tiles` returns it; with text, as
            :mod:`flexsparse.choice.text` adds it.
        tiling, most, q_rows, query_tiles: as in :func:`tile_block_mask`; ``n = tiling.key_tiles``.
        text_lengths: where texts of the batch differ in length, int ``[B]``.
        queries: whose rows of queries there are, of a tiling with text.
    """

    bits: Tensor
    tiling: VideoTiling
    most: int | None = None
    q_rows: int | None = None
    query_tiles: int = 1
    text_lengths: Tensor | None = None
    queries: Literal["all", "video", "text"] = "all"

    @property
    def BLOCK_SIZE(self) -> tuple[int, int]:
        """Of the mask: rows of a query block and of a key block."""
        rows = self.tiling.rows
        return self.query_tiles * (rows if self.q_rows is None else self.q_rows), rows

    @property
    def seq_lengths(self) -> tuple[int, int]:
        """Of the mask: rows of queries and of keys."""
        tiling = self.tiling
        of_video = tiling.num_tiles * (tiling.rows if self.q_rows is None else self.q_rows)
        of_text = tiling.text_tiles * tiling.rows
        q_len = {"all": of_video + of_text, "video": of_video, "text": of_text}[self.queries]
        return q_len, tiling.padded_tokens

    @property
    def all_queries(self) -> bool:
        """Whether queries are laid out as keys are, padding included."""
        return self.q_rows is None and self.seq_lengths[0] == self.tiling.padded_tokens

    def mask(self) -> TileBlockMask:
        """The BlockMask, lists and all."""
        bits, tiling, (q_block, rows) = self.bits, self.tiling, self.BLOCK_SIZE
        valid = tiling.counts(bits.device, self.text_lengths)
        of_each = self.text_lengths is not None

        # Where a mask_mod captures memory that a kernel has written, Inductor (seen: 2.11, 2.14)
        # hands FlexAttention what that memory was allocated with: what is computed from it, it
        # reads.
        left_out = ~bits

        def mask_mod(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            tile, row = quotient(kv, rows), remainder(kv, rows)
            word = left_out[b, h, quotient(q, q_block), quotient(tile, 32)]
            hidden = (word >> remainder(tile, 32)) & 1
            return (hidden == 0) & (row < (valid[b, tile] if of_each else valid[tile]))

        most, by_key = self.most or tiling.key_tiles, torch.is_grad_enabled()
        by_query, of_keys = block_lists(bits, tiling, most=most, by_key=by_key)
        lists: Any = (*by_query, *(of_keys or (None,) * 4))
        given: Any = dict(BLOCK_SIZE=self.BLOCK_SIZE, mask_mod=mask_mod)
        mask = TileBlockMask(self.seq_lengths, *lists, **given)
        mask.tiling, mask.text_lengths = tiling, self.text_lengths
        mask.made_of, mask.all_queries = self, self.all_queries
        return mask


def tile_block_mask(
    tile_map: Tensor,
    tiling: VideoTiling,
    *,
    most: int | None = None,
    q_rows: int | None = None,
    query_tiles: int = 1,
) -> TileBlockMask:
    """The BlockMask in which each query block attends to the key tiles of its row.

    Its ``mask_mod`` alone is the whole mask, tile choice and padding of keys; the lists are an
    index into it, in both directions (for inference, under ``no_grad``, in the forward direction
    alone). Key tiles with padding are partial blocks, the others full ones. Nothing is read back
    from the device.

    Args:
        tile_map: who attends to whom, bool ``[B, H, ceil(n / query_tiles), n]``.
        tiling: the shape, without text; ``n = tiling.num_tiles``.
        most: the width of the forward lists, at least as many tiles as a row has; default n.
        q_rows: rows of queries for a tile, where queries are not laid out as keys are.
        query_tiles: adjacent tiles whose queries make a block; the last block may have fewer.

    Returns:
        A BlockMask of ``BLOCK_SIZE == (query_tiles * q_rows, rows)`` over ``n * q_rows`` queries
        and ``padded_tokens`` keys.
    """
    return ChosenTiles(pack_bits(tile_map), tiling, most, q_rows, query_tiles).mask()


# Of what is at least 0, which compilers do not know of an index: / and % of it were a fifth of all
# that a kernel issues for a padded tile.
def quotient(index: Tensor, size: int) -> Tensor:
    return index // size if size & (size - 1) else index >> (size.bit_length() - 1)


def remainder(index: Tensor, size: int) -> Tensor:
    return index % size if size & (size - 1) else index & (size - 1)


def _to_map(num: Tensor, indices: Tensor, width: int) -> Tensor:
    """Lists to a bool map: entries past a row's count land past the end."""
    listed = torch.arange(indices.shape[-1], device=num.device) < num[..., None]
    return tile_map(torch.where(listed, indices, width), width + 1)[..., :width]
