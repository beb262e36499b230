"""What stands at the model's door beside the patches: the norm in fp32, the picture's embedding."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.wan.config import WanConfig

Triple = tuple[int, int, int]


def wide(x: Tensor) -> Tensor:
    """x in fp32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class WideLayerNorm(nn.LayerNorm):
    """LayerNorm computed in fp32 at least, whatever the dtypes of x and weights; in x's dtype."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = wide(self.weight), wide(self.bias)
        return F.layer_norm(wide(input), self.normalized_shape, weight, bias, self.eps).to(
            input.dtype
        )


def unpatchify(tokens: Tensor, grid: Triple, patch: Triple) -> Tensor:
    """[B, tokens, volume of the patch * C] -> [B, C, T, H, W], from tokens in raster order.

    Channels come last in a patch of Wan's velocity, but first in one of its input.
    """
    (nt, nh, _), (t, h, w) = grid, patch
    return rearrange(
        tokens, "b (nt nh nw) (t h w c) -> b c (nt t) (nh h) (nw w)", nt=nt, nh=nh, t=t, h=h, w=w
    )


class ImageEmbedding(nn.Module):
    """Picture tokens [B, N, image_dim] of a CLIP encoder to [B, N, dim]."""

    def __init__(self, config: WanConfig, image_dim: int):
        super().__init__()
        self.proj = nn.Sequential(
            WideLayerNorm(image_dim),
            nn.Linear(image_dim, image_dim),
            nn.GELU(),
            nn.Linear(image_dim, config.dim),
            WideLayerNorm(config.dim),
        )
        if config.pos_embed_seq_len is not None:
            self.emb_pos = nn.Parameter(torch.zeros(1, config.pos_embed_seq_len, image_dim))
        else:
            self.emb_pos = None

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image if self.emb_pos is None else image + self.emb_pos)
