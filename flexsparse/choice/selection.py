"""The best tiles of each row of scores, as lists, as a map and as bits: exact integer work."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def pack_bits(tile_map: Tensor) -> Tensor:
    """A tile map, a bit each: bool ``[..., n]`` to int32 ``[..., ceil(n / 32)]``, lowest bit first.

    >>> pack_bits(torch.tensor([True, False, True]))
    tensor([5], dtype=torch.int32)
    """
    words = F.pad(tile_map.int(), (0, -tile_map.shape[-1] % 32)).unflatten(-1, (-1, 32))
    shift = torch.arange(32, dtype=torch.int32, device=tile_map.device)
    return (words << shift).sum(-1, dtype=torch.int32)


def unpack_bits(bits: Tensor, n: int) -> Tensor:
    """Undoes :func:`pack_bits`: bool ``[..., n]``."""
    shift = torch.arange(32, dtype=torch.int32, device=bits.device)
    return ((bits.unsqueeze(-1) >> shift) & 1).flatten(-2)[..., :n].bool()


def select_top_k(scores: Tensor, top_k: int) -> Tensor:
    """The ``top_k`` best tiles of each row, in ascending order: int32 ``[..., top_k]``.

    Of equal scores the lower index wins, and NaN counts as the best, so that it stays visible. The
    choice is made by topk on distinct integer keys; everything after it is exact integer work, so
    a checkpoint policy that saves topk's result makes a recomputed layer choose the same tiles.

    Args:
        scores: fp32 ``[..., n]``; no gradient flows through the choice.
        top_k: 1 to n.

    >>> select_top_k(torch.tensor([0.5, 2.0, 0.5, -1.0]), 2)
    tensor([0, 1], dtype=torch.int32)
    """
    best = sort_keys(scores).topk(top_k, dim=-1, sorted=False).indices
    return best.sort(-1).values.int()


def select_admitted(scores: Tensor, admitted: Tensor, least: int | Tensor, most: int) -> Selection:
    """The best ``most`` admitted tiles of each row, and the best ``least`` tiles in any case.

    Ties, NaN and recomputation as in :func:`select_top_k`: which tiles are admitted goes through
    topk as well, as a bit of the keys.

    Args:
        scores: fp32 ``[..., n]``.
        admitted: bool ``[..., n]``; no score outside is better than one inside.
        least, most: 1 to n; ``least`` may be a tensor of one number.

    >>> scores = torch.tensor([0.5, 2.0, 0.5, -1.0])
    >>> tiles, counts = select_admitted(scores, scores > 1, least=1, most=3)
    >>> tiles, counts
    (tensor([1, 0, 0], dtype=torch.int32), tensor(1, dtype=torch.int32))
    """
    n = scores.shape[-1]
    keys = sort_keys(scores) + admitted.long() * _ADMITTED
    best = keys.topk(most, dim=-1, sorted=True)
    chosen = (best.values >= _ADMITTED // 2) | (torch.arange(most, device=scores.device) < least)
    tiles = torch.where(chosen, best.indices, n).sort(-1).values
    return Selection(torch.where(tiles < n, tiles, 0).int(), chosen.sum(-1, dtype=torch.int32))


class Selection(NamedTuple):
    """A choice with as many tiles as each row wants: ``tiles[..., :counts]``, ascending."""

    tiles: Tensor  # int32 [..., most]; past a row's count, 0
    counts: Tensor  # int32 [...]


_ADMITTED = 1 << 62  # keys are between -half and half of this


def sort_keys(scores: Tensor) -> Tensor:
    """Distinct int64 keys that sort as ``(score, lower index first)`` does; NaN is the largest."""
    n = scores.shape[-1]
    scores = scores.detach().float()
    bits = torch.where(scores == 0, 0.0, scores).view(torch.int32)  # -0.0 ties with 0.0
    bits = torch.where(scores.isnan(), 0x7FFFFFFF, bits)
    order = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()  # sorts as the floats do
    return (order << 30) | (n - 1 - torch.arange(n, device=scores.device))


def tile_map(selected: Tensor, num_tiles: int) -> Tensor:
    """Who attends to whom: int ``[..., n, k]`` of chosen tiles to bool ``[..., n, num_tiles]``."""
    chosen = selected.new_zeros((*selected.shape[:-1], num_tiles), dtype=torch.bool)
    return chosen.scatter_(-1, selected.long(), True)
