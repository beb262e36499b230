"""Dense attention on tile-major tensors: what a sparse layer is where nothing is left out."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from flexsparse.tiling import VideoTiling


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, tiling: VideoTiling, *, enable_gqa: bool = False
) -> Tensor:
    """Every token of the video attends to every other, by ``scaled_dot_product_attention``.

    Attention does not care about the order of its tokens: only padding has to be taken out.

    Args:
        q: tile-major ``[B, H, padded_tokens, D]``; what stands in padding has no effect.
        k, v: tile-major ``[B, Hkv, padded_tokens, D]``, with fewer heads only if ``enable_gqa``.
        tiling: the shape.

    Returns:
        ``[B, H, padded_tokens, D]``, zeros in padding.

    Raises:
        ValueError: raster tensors.

    >>> tiling = VideoTiling((2, 4, 4), tile=(2, 2, 2))
    >>> q = torch.randn(1, 2, tiling.padded_tokens, 16)
    >>> dense_attention(q, q, q, tiling).shape
    torch.Size([1, 2, 64, 16])
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        tiling.check_tiled(x, name)
    if tiling.has_padding:
        q, k, v = (tiling.from_tiles(x) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, enable_gqa=enable_gqa)
    return tiling.to_tiles(out) if tiling.has_padding else out
