"""The transformer block: self-attention through the slot, cross-attention to the condition, MLP.

The timestep modulates self-attention and MLP (adaLN-zero), in fp32 at least, whatever the weights:

    x + gate * f(norm(x) * (1 + scale) + shift)

The six vectors of a block are the sum of a projection of the timestep, which all blocks share, and
of a table of the block's own, as in PixArt and Wan.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexsparse import VideoTiling
from flexsparse.nn.ulysses import Ulysses
from models.video_dit.config import VideoDiTConfig
from models.video_dit.rope import rotate

EPS = 1e-6


# not einops here: torch.compile traces its parser anew in each block, for a third of a block's time
def split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def attend(
    slot: nn.Module,
    x: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tiling: VideoTiling | None,
    **options: Any,
) -> Tensor:
    """What a slot makes of these rows; of options, `shards` and `band`, it need not know those that
    are None."""
    return slot(x, q, k, v, tiling, **{n: o for n, o in options.items() if o is not None})


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm of x [B, L, dim], scaled and shifted by [B, 1, dim]; in x's dtype."""
    return (F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift).to(x.dtype)


def add_gated(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    return (x + gate * branch).to(x.dtype)


class SelfAttention(nn.Module):
    """Attention among the video's tokens; which tokens see which is the slot's affair.

    Queries and keys are normalised across heads (RMSNorm), as in Wan, then rotated.
    """

    def __init__(self, config: VideoDiTConfig, tiling: VideoTiling | None):
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.q_norm = nn.RMSNorm(config.dim, eps=EPS)
        self.k_norm = nn.RMSNorm(config.dim, eps=EPS)
        self.slot = config.attention.build(config.dim, config.heads, tiling)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(
        self,
        x: Tensor,
        rotary: Tensor,
        tiling: VideoTiling | None,
        shards: Ulysses | None,
        band: str | None,
    ) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q = rotate(split_heads(self.q_norm(q), self.heads), rotary)
        k = rotate(split_heads(self.k_norm(k), self.heads), rotary)
        v = split_heads(v, self.heads)
        attended = attend(self.slot, x, q, k, v, tiling, shards=shards, band=band)
        return self.out(merge_heads(attended))


class CrossAttention(nn.Module):
    """Attention from the video's tokens to the condition tokens [B, N, dim], dense."""

    def __init__(self, config: VideoDiTConfig):
        super().__init__()
        self.heads = config.heads
        self.q = nn.Linear(config.dim, config.dim)
        self.kv = nn.Linear(config.dim, 2 * config.dim)
        self.q_norm = nn.RMSNorm(config.dim, eps=EPS)
        self.k_norm = nn.RMSNorm(config.dim, eps=EPS)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        k, v = self.kv(context).chunk(2, -1)
        q, k, v = (split_heads(y, self.heads) for y in (self.q_norm(self.q(x)), self.k_norm(k), v))
        return self.out(merge_heads(F.scaled_dot_product_attention(q, k, v)))


class MLP(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """One layer; rows keep the order that they come in.

    Padding of a tiled sequence is rows like any others here: the slot keeps them from being seen,
    and everything else works row by row.
    """

    def __init__(self, config: VideoDiTConfig, tiling: VideoTiling | None):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(6, config.dim))
        self.self_attention = SelfAttention(config, tiling)
        self.cross_norm = nn.LayerNorm(config.dim, eps=EPS)
        self.cross_attention = CrossAttention(config)
        self.mlp = MLP(config.dim, config.ffn)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        context: Tensor,
        rotary: Tensor,
        tiling: VideoTiling | None,
        shards: Ulysses | None = None,
        band: str | None = None,
    ) -> Tensor:
        """x [B, L, dim], modulation [B, 6, dim], context [B, N, dim], rotary [2, L, D].

        With `shards`, x and rotary are this rank's rows; `band` is that of the noise level.
        """
        scale1, shift1, gate1, scale2, shift2, gate2 = (self.table + modulation).split(1, dim=1)
        attended = self.self_attention(modulate(x, scale1, shift1), rotary, tiling, shards, band)
        x = add_gated(x, gate1, attended)
        x = x + self.cross_attention(self.cross_norm(x), context)
        return add_gated(x, gate2, self.mlp(modulate(x, scale2, shift2)))


class Head(nn.Module):
    """From rows [B, L, dim] and the timestep [B, dim] to patches of velocity [B, L, patch_dim]."""

    def __init__(self, config: VideoDiTConfig):
        super().__init__()
        self.modulation = nn.Linear(config.dim, 2 * config.dim)
        self.out = nn.Linear(config.dim, config.patch_dim)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.modulation(F.silu(time))[:, None].chunk(2, -1)
        return self.out(modulate(x, scale, shift))
