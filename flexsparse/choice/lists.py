"""A choice of tiles as FlexAttention's lists: which key tiles a query block visits, and back."""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from flexsparse.checks import can_be_read
from flexsparse.choice.selection import unpack_bits
from flexsparse.tiling import VideoTiling

if sys.platform == "linux":  # where the package depends on triton
    from flexsparse.kernels import tile_lists as kernels

Lists = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""Counts and indices of partial blocks, then of full ones."""


def block_lists(
    bits: Tensor, tiling: VideoTiling, *, most: int, by_key: bool
) -> tuple[Lists, Lists | None]:
    """The key tiles of every query block, and ``by_key`` the query blocks of every key tile.

    Ascending int32 indices; what stands past a count is arbitrary, but is an index. Key tiles with
    padding, and those of text, whose lengths may vary, are partial blocks, the others full ones.
    FlexAttention's CUDA kernels find a row of either by the strides of the partial list, so that
    the two have one layout.

    Args:
        bits: int32 ``[B, H, blocks, ceil(n / 32)]``, as ``pack_bits`` has them.
        tiling: the shape; ``n = tiling.key_tiles``.
        most: the width of the lists of query blocks, at least as many tiles as a row has: a GPU,
            which is not asked, cuts lists that are longer.
        by_key: whether to make those of key tiles, which are as wide as the number of query blocks:
            any of them may choose a tile.
    """
    if bits.is_cuda:
        shape = list(tiling.video), list(tiling.tile), tiling.rows, tiling.text_tiles
        num, indices, *rest = kernels.tile_lists(bits, *shape, most, by_key)
    else:
        num, indices, *rest = tile_lists_twin(bits, tiling, most, by_key)
    forward = _partial_and_full(num, indices, tiling)
    if bits.device.type == "cpu":  # where torch's compiled kernel refuses narrow partial lists
        wide = F.pad(forward[1], (0, tiling.key_tiles - most))
        forward = forward[0], wide, *forward[2:]
    if not by_key:
        return forward, None
    num, indices = rest
    return forward, _partial_and_full(num, indices.unsqueeze(0), tiling)


def has_partial_tiles(tiling: VideoTiling) -> bool:
    """Whether some blocks of keys are partial ones."""
    return tiling.full_tiles < tiling.key_tiles


def tile_lists_twin(bits: Tensor, tiling: VideoTiling, most: int, by_key: bool) -> list[Tensor]:
    """``kernels/tile_lists.py`` in plain PyTorch; past a count there are zeros."""
    n = tiling.key_tiles
    chosen = unpack_bits(bits, n)
    if can_be_read(bits):
        longest = int(chosen.sum(-1).max())
        if longest > most:
            raise ValueError(f"a row has {longest} tiles, more than most={most}: make that larger")
    of_video = torch.arange(n, device=bits.device) < tiling.num_tiles
    is_full = of_video & (tiling.counts(bits.device) == tiling.rows)
    of_kind = [chosen & ~is_full, chosen & is_full]
    lists = [_counted(x, most) for x in of_kind]
    there_is = [has_partial_tiles(tiling), tiling.full_tiles > 0]
    indices = [x for (_, x), there in zip(lists, there_is) if there]
    outs = [torch.stack([num for num, _ in lists]), torch.stack(indices)]
    if by_key:
        nums = [x.sum(-2, dtype=torch.int32) for x in of_kind]
        outs += [torch.stack(nums), _counted(chosen.transpose(-1, -2), chosen.shape[-2])[1]]
    return outs


def _counted(chosen: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Bool ``[..., m]`` to counts ``[...]`` and to the indices of what is set, ``[..., width]``."""
    m = chosen.shape[-1]
    rank = chosen.cumsum(-1, dtype=torch.int32)
    slot = torch.where(chosen, rank - 1, width).long()  # those not chosen write past the end
    index = torch.arange(m, dtype=torch.int32, device=chosen.device).expand_as(slot)
    indices = slot.new_zeros((*slot.shape[:-1], width + 1), dtype=torch.int32)
    indices = indices.scatter_(-1, slot, index)
    return rank[..., -1].contiguous(), indices[..., :width].contiguous()


def _partial_and_full(num: Tensor, indices: Tensor, tiling: VideoTiling) -> Lists:
    """Counts ``[2, ...]`` and lists by kind, or one for both, in the order of BlockMask."""
    # by index: what `unbind` makes, torch.compile would keep for the backward
    partial, full, first, last = num[0], num[1], indices[0], indices[-1]
    if indices.device.type == "cpu":
        last = last.clone()  # torch's compiled kernel for CPUs refuses one tensor for both
    return (partial, first, full, last) if tiling.full_tiles else (partial, first, None, None)
