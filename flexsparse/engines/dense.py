"""Dense attention on tile-major tensors: what a sparse layer is where nothing is left out."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flexsparse.checks import check_text_lengths
from flexsparse.derivatives import has_tangent
from flexsparse.tiling import VideoTiling


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tiling: VideoTiling,
    *,
    enable_gqa: bool = False,
    text_lengths: Tensor | None = None,
) -> Tensor:
    """Every token, of video and text, attends to every other, by ``scaled_dot_product_attention``.

    Attention does not care about the order of its tokens: only padding has to be taken out.

    Args:
        q: tile-major ``[B, H, padded_tokens, D]``; what stands in padding has no effect.
        k, v: tile-major ``[B, Hkv, padded_tokens, D]``, with fewer heads only if ``enable_gqa``.
        tiling: the shape.
        text_lengths: where texts of the batch differ in length, int ``[B]``.

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
    check_text_lengths(text_lengths, tiling, q)
    keys = None
    if text_lengths is not None:
        q, k, v = tiling.zero_each((q, k, v), text_lengths)
        token = torch.arange(tiling.tokens, device=q.device)
        keys = (token < tiling.of_video.tokens + text_lengths[:, None])[:, None, None]
    if tiling.has_padding:
        q, k, v = (tiling.from_tiles(x) for x in (q, k, v))
    # of SDPA's kernels on a CPU the plain one alone has a forward mode
    forward_mode = not torch.compiler.is_compiling() and has_tangent(q, k, v)
    with sdpa_kernel(SDPBackend.MATH) if forward_mode else nullcontext():
        out = F.scaled_dot_product_attention(q, k, v, keys, enable_gqa=enable_gqa)
    out = tiling.to_tiles(out) if tiling.has_padding else out
    return out if text_lengths is None else tiling.zero_padding(out, text_lengths)
