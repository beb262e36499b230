"""Rotary position embedding over (T, H, W): each axis turns its share of a head's channels."""

import torch
from torch import Tensor

THETA = 10_000.0


def rotary_table(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> Tensor:
    """Cosines and sines of every token's angles: [2, tokens, head_dim], fp32, raster order.

    Each stands twice, for both channels of its pair, a sine with the sign that its rotation has.

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
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)))


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate x [B, H, L, D] by `table` [2, L, D]: channels i and i + D / 2 make a pair.

    Computed in the table's fp32, returned in x's dtype. The product of a rotated query with a
    rotated key depends on the difference of their places alone.
    """
    cos, sin = table.unbind()
    # Compiled, chunks that are concatenated take twice the loads, and spill; signs computed here
    # would have Inductor write the sum in fp32 and cast it in another pass.
    return (x * cos + x.unflatten(-1, (2, -1)).flip(-2).flatten(-2) * sin).to(x.dtype)
