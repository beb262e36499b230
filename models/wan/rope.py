"""Wan's rotary position embedding over (T, H, W): channels 2i and 2i + 1 make a pair."""

import torch
from torch import Tensor

THETA = 10_000.0


def rotary_table(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> Tensor:
    """Cosines and sines of every token's angles: [2, tokens, head_dim / 2], fp32, raster order.

    A third of the pairs each (rounded down) turns with height and with width, the rest with time.
    Angles are computed in fp64, as in Wan. The table is made anew in every forward, from the grid
    alone: there is no longest video, and no buffer for `to(torch.bfloat16)` to round.
    """
    pairs = head_dim // 2
    spatial = pairs // 3
    angles = []
    for axis, (size, n) in enumerate(zip(grid, (pairs - 2 * spatial, spatial, spatial))):
        frequency = THETA ** -(torch.arange(n, device=device, dtype=torch.float64) / n)
        angle = torch.arange(size, device=device)[:, None] * frequency
        shape = [1, 1, 1, n]
        shape[axis] = size
        angles.append(angle.view(shape).expand(*grid, n))
    angle = torch.cat(angles, -1).flatten(0, 2)
    return torch.stack((angle.cos(), angle.sin())).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate x [B, H, L, D] by `table` [2, L, D / 2]; computed in fp32, returned in x's dtype."""
    cos, sin = table.unsqueeze(-1).unbind()  # [L, D / 2, 1]
    pairs = x.unflatten(-1, (-1, 2))
    sign = 2 * torch.arange(2, device=x.device, dtype=table.dtype) - 1
    return (pairs * cos + pairs.flip(-1) * (sign * sin)).flatten(-2).to(x.dtype)
