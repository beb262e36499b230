"""Wan's transformer block: self-attention through the slot, cross-attention to text and picture,
feed-forward.

The timestep modulates self-attention and feed-forward, norms and modulation in fp32 at least:

    x + gate * f(norm(x) * (1 + scale) + shift)

The six vectors of a block are the sum of a projection of the timestep, which all blocks share, and
of a table of the block's own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexsparse import VideoTiling
from flexsparse.nn.ulysses import Ulysses
from models.video_dit.blocks import attend, merge_heads, split_heads
from models.wan.config import WanConfig
from models.wan.embed import WideLayerNorm, wide
from models.wan.rope import rotate


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm of x [B, L, dim], scaled and shifted by [B, 1, dim]; in x's dtype."""
    return (F.layer_norm(wide(x), x.shape[-1:], eps=eps) * (1 + scale) + shift).to(x.dtype)


def add_gated(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    return (x + gate * branch).to(x.dtype)


class Attention(nn.Module):
    """What self- and cross-attention share: projections, and norms of q and k across heads."""

    def __init__(self, config: WanConfig):
        super().__init__()
        dim, self.heads = config.dim, config.heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q = nn.RMSNorm(dim, eps=config.eps)
        self.norm_k = nn.RMSNorm(dim, eps=config.eps)

    def split(self, *projected: Tensor) -> list[Tensor]:
        """[B, L, dim] each to [B, H, L, D]."""
        return [split_heads(x, self.heads) for x in projected]


class SelfAttention(Attention):
    """Attention among the video's tokens; which tokens see which is the slot's affair."""

    def __init__(self, config: WanConfig):
        super().__init__(config)
        self.slot = config.attention.build(config.dim, config.heads, None)

    def forward(
        self,
        x: Tensor,
        rotary: Tensor,
        tiling: VideoTiling | None,
        shards: Ulysses | None,
        band: str | None,
    ) -> Tensor:
        q, k, v = self.split(self.norm_q(self.q(x)), self.norm_k(self.k(x)), self.v(x))
        q, k = rotate(q, rotary), rotate(k, rotary)
        attended = attend(self.slot, x, q, k, v, tiling, shards=shards, band=band)
        return self.o(merge_heads(attended))


class CrossAttention(Attention):
    """Attention from the video's tokens to those of the text and, where there is one, picture.

    A softmax of its own for each; both have the queries and the output projection in common.
    """

    def __init__(self, config: WanConfig):
        super().__init__(config)
        if config.image_dim is not None:
            self.k_img = nn.Linear(config.dim, config.dim)
            self.v_img = nn.Linear(config.dim, config.dim)
            self.norm_k_img = nn.RMSNorm(config.dim, eps=config.eps)

    def forward(self, x: Tensor, text: Tensor, image: Tensor | None) -> Tensor:
        q, k, v = self.split(self.norm_q(self.q(x)), self.norm_k(self.k(text)), self.v(text))
        attended = F.scaled_dot_product_attention(q, k, v)
        if image is not None:
            k, v = self.split(self.norm_k_img(self.k_img(image)), self.v_img(image))
            attended = attended + F.scaled_dot_product_attention(q, k, v)
        return self.o(merge_heads(attended))


class Block(nn.Module):
    """One layer; rows keep the order that they come in.

    Padding of a tiled sequence is rows like any others here: the slot keeps them from being seen,
    and everything else works row by row.
    """

    def __init__(self, config: WanConfig):
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.zeros(1, 6, config.dim))
        self.self_attn = SelfAttention(config)
        self.norm3 = WideLayerNorm(config.dim, config.eps)
        self.cross_attn = CrossAttention(config)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn, config.dim),
        )

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        text: Tensor,
        image: Tensor | None,
        rotary: Tensor,
        tiling: VideoTiling | None,
        shards: Ulysses | None = None,
        band: str | None = None,
    ) -> Tensor:
        """x [B, L, dim], modulation [B, 6, dim] in fp32 at least, text [B, N, dim], image
        [B, M, dim] or None, rotary [2, L, D]. With `shards`, x and rotary are this rank's
        rows; `band` is that of the noise level."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + modulation).split(1, 1)
        rows = modulate(x, shift1, scale1, self.eps)
        attended = self.self_attn(rows, rotary, tiling, shards, band)
        x = add_gated(x, gate1, attended)
        x = x + self.cross_attn(self.norm3(x), text, image)
        return add_gated(x, gate2, self.ffn(modulate(x, shift2, scale2, self.eps)))


class Head(nn.Module):
    """From rows [B, L, dim] and the timestep [B, dim] to patches of velocity [B, L, patch_dim]."""

    def __init__(self, config: WanConfig):
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim))
        self.head = nn.Linear(config.dim, config.patch_dim)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.modulation + wide(time)[:, None]).split(1, 1)
        return self.head(modulate(x, shift, scale, self.eps))
