"""Rotary position embedding over (T, H, W): each axis turns its share of a head's channels."""

import torch
from torch import Tensor

THETA = 10_000.0


def rotary_table(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> Tensor:
    """Cosines and sines of every token's angles: [2, tokens, head_dim / 2], fp32, raster order.

    A third of the channels each (rounded down to a pair) turns with height and with width, the rest
    with time, as in Wan. The table is made anew in every forward, from the grid alone: that is
    cheap, and there is no buffer for `to(torch.bfloat16)` to round or `to_empty` to forget.
    """
    pairs = head_dim // 2
    spatial = pairs // 3
    angles = []
    for axis, (size, n) in enumerate(zip(grid, (pairs - 2 * spatial, spatial, spatial))):
        frequency = THETA ** -(torch.arange(n, device=device, dtype=torch.float32) / n)
        angle = torch.arange(size, device=device)[:, None] * frequency
        shape = [1, 1, 1, n]
        shape[axis] = size
        angles.append(angle.view(shape).expand(*grid, n))
    angle = torch.cat(angles, -1).flatten(0, 2)
    return torch.stack((angle.cos(), angle.sin()))


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate x [B, H, L, D] by `table` [2, L, D / 2]: channels i and i + D / 2 make a pair.

    Computed in the table's fp32, returned in x's dtype. The product of a rotated query with a
    rotated key depends on the difference of their places alone.
    """
    cos, sin = table.unsqueeze(-2).unbind()  # [L, 1, D / 2]
    pairs = x.unflatten(-1, (2, -1))
    sign = 2 * torch.arange(2, device=x.device, dtype=table.dtype)[:, None] - 1
    # no chunks to be concatenated: compiled, that takes twice the loads, and spills
    return (pairs * cos + pairs.flip(-2) * (sign * sin)).flatten(-2).to(x.dtype)
