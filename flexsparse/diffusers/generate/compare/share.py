"""How much of dense attention the chosen tiles hold, in plain PyTorch, a query tile at a time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from flexsparse.tiling import VideoTiling

MOST = 64  # query tiles that are looked at: with all of a long video it would be a run of its own


@torch.no_grad()
def held_share(
    q: Tensor,
    k: Tensor,
    tiling: VideoTiling,
    tile_map: Tensor,
    text_lengths: Tensor | None = None,
    most: int = MOST,
) -> Tensor:
    """The share of dense attention's weight that the chosen tiles hold, and the text, which all
    attend to: fp64, a mean over batch, heads and the valid queries of up to `most` tiles.

    Args:
        q, k: tile-major ``[B, H, padded_tokens, D]``; k may have a divisor of the heads.
        tile_map: who attends to whom, bool ``[B, H, num_tiles, num_tiles]``.
        most: query tiles are taken evenly over the video.
    """
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    k = tiling.zero_padding(k, text_lengths).float()
    valid = tiling.valid(q.device, text_lengths).view(-1, 1, 1, tiling.padded_tokens)
    rows = tiling.valid(q.device).view(-1, tiling.rows)
    chosen = F.pad(tile_map, (0, tiling.text_tiles), value=True)
    n = tiling.num_tiles
    held = []
    for tile in torch.linspace(0, n - 1, min(n, most), dtype=torch.float64).round().long().tolist():
        begin = tile * tiling.rows
        queries = q[:, :, begin : begin + tiling.rows][:, :, rows[tile]].float()
        scores = queries @ k.mT / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~valid, -torch.inf).softmax(-1)
        of_tiles = weights.unflatten(-1, (tiling.key_tiles, tiling.rows)).sum(-1).mean(-2)
        held.append((of_tiles * chosen[:, :, tile]).sum(-1).double().mean())
    return torch.stack(held).mean().cpu()
