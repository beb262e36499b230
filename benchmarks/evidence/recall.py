"""How much of dense attention the chosen tiles hold: in plain PyTorch, a query tile at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flexsparse import VideoTiling


@torch.no_grad()
def tile_mass(q: Tensor, k: Tensor, tiling: VideoTiling) -> Tensor:
    """The weight that dense attention gives each key tile: fp32 [B, H, n, n], rows sum to 1.

    Means over the valid queries of a query tile. q, k: tile-major [B, H, padded_tokens, D].
    """
    n, rows = tiling.num_tiles, tiling.rows
    valid = tiling.valid(q.device)
    q, k = (tiling.zero_padding(x).float() for x in (q, k))
    mass = q.new_empty(*q.shape[:2], n, n)
    for tile, live in enumerate(valid.view(n, rows)):
        scores = (
            q[:, :, tile * rows : (tile + 1) * rows][:, :, live] @ k.mT / math.sqrt(q.shape[-1])
        )
        weights = scores.masked_fill(~valid, -torch.inf).softmax(-1)
        mass[:, :, tile] = weights.unflatten(-1, (n, rows)).sum(-1).mean(-2)
    return mass


def held(mass: Tensor, tile_map: Tensor) -> Tensor:
    """What the tiles of a choice hold of it: [B, H], means over query tiles."""
    return (mass * tile_map).sum(-1).mean(-1)


def best(mass: Tensor, tile_map: Tensor) -> Tensor:
    """What the best choice of as many tiles for each query tile would hold: [B, H]."""
    order = mass.sort(-1, descending=True).values
    among = torch.arange(mass.shape[-1], device=mass.device) < tile_map.sum(-1, keepdim=True)
    return (order * among).sum(-1).mean(-1)
