"""Wan's rotary position embedding over (T, H, W): channels 2i and 2i + 1 make a pair."""

import torch
from torch import Tensor

THETA = 10_000.0


def rotary_table(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> Tensor:
    """Cosines and sines of every token's angles: [2, tokens, head_dim], fp32, raster order.

    Each stands twice, for both channels of its pair, a sine with the sign that its rotation has.

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
    cos, sin = angle.cos().float(), angle.sin().float()
    return torch.stack((cos.repeat_interleave(2, -1), torch.stack((-sin, sin), -1).flatten(-2)))


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate x [B, H, L, D] by `table` [2, L, D]; computed in fp32, returned in x's dtype."""
    cos, sin = table.unbind()
    # Signs computed here would have Inductor write the sum in fp32 and cast it in another pass.
    return (x * cos + x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) * sin).to(x.dtype)
