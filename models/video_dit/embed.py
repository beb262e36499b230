"""What stands at the model's door: patches in and out, and the embedding of time."""

import torch
from einops import rearrange
from torch import Tensor

Triple = tuple[int, int, int]


def patchify(x: Tensor, patch: Triple) -> Tensor:
    """[B, C, T, H, W] -> [B, tokens, C * volume of the patch], tokens in raster order."""
    t, h, w = patch
    return rearrange(x, "b c (nt t) (nh h) (nw w) -> b (nt nh nw) (c t h w)", t=t, h=h, w=w)


def unpatchify(tokens: Tensor, grid: Triple, patch: Triple) -> Tensor:
    """The exact inverse of `patchify` on a grid of tokens (T, H, W)."""
    (nt, nh, _), (t, h, w) = grid, patch
    return rearrange(
        tokens, "b (nt nh nw) (c t h w) -> b c (nt t) (nh h) (nw w)", nt=nt, nh=nh, t=t, h=h, w=w
    )


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoids of t [B] in [0, 1]: [B, dim], always fp32.

    Angles reach 1000 radians and are computed in fp64, as in Wan: in fp32 a frequency that one
    compiler rounds up and another down would move the fifth decimal of the result.
    """
    half = dim // 2
    exponent = torch.arange(half, device=t.device, dtype=torch.float64) / half
    angle = 1000 * t.double()[:, None] * 10_000.0**-exponent
    return torch.cat((angle.cos(), angle.sin()), -1).float()
