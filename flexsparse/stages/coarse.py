"""VSA's coarse output: attention between tiles, each of which is the mean of its tokens."""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from flexsparse.choice.choose import coarse_scores

if sys.platform == "linux":  # where the package depends on triton
    from flexsparse.kernels import coarse_attention as kernels


def coarse_attention(
    q_pooled: Tensor, k_pooled: Tensor, v_pooled: Tensor, *, again: bool = False
) -> Tensor:
    """``softmax(Qc Kc^T / sqrt(D)) Vc`` (VSA, arXiv 2505.13389, coarse stage).

    Args:
        q_pooled: ``[B, H, n, D]``, as pool_tiles returns it.
        k_pooled, v_pooled: alike, with as many heads or a divisor.
        again: a compiled graph of CUDA computes the result once more in its backward, and saves it
            not.

    Returns:
        ``[B, H, n, D]``, one row per query tile, computed and returned in fp32; on the CPU in fp64
        for fp64. Differentiable. On CUDA the scores never reach memory.

    Raises:
        ValueError: shapes that do not fit.

    >>> means = torch.eye(16).expand(1, 2, 16, 16)
    >>> rows = coarse_attention(means, means, means)
    >>> rows.shape, rows.argmax(-1)[0, 0, :4]
    (torch.Size([1, 2, 16, 16]), tensor([0, 1, 2, 3]))
    """
    (B, H, *tiles), heads = q_pooled.shape, max(k_pooled.shape[1], 1)
    if H % heads or not (B, heads, *tiles) == k_pooled.shape == v_pooled.shape:
        shapes = [tuple(x.shape) for x in (q_pooled, k_pooled, v_pooled)]
        raise ValueError(
            f"q_pooled, k_pooled and v_pooled are {shapes}: pool the same tiles, and give k and v "
            "a divisor of q's heads"
        )
    if not q_pooled.is_cuda:
        return coarse_attention_twin(q_pooled, k_pooled, v_pooled)
    scale = 1 / math.sqrt(q_pooled.shape[-1])
    q, k, v = (x.float() for x in (q_pooled, k_pooled, v_pooled))
    return kernels.coarse_attention(q, k, v, scale, again)[0]


def coarse_attention_twin(q_pooled: Tensor, k_pooled: Tensor, v_pooled: Tensor) -> Tensor:
    """:func:`coarse_attention` in plain PyTorch, on any device."""
    wide = torch.promote_types(q_pooled.dtype, torch.float32)
    groups = q_pooled.shape[1] // k_pooled.shape[1]
    q, k, v = (x.to(wide) for x in (q_pooled, k_pooled, v_pooled))
    v = v.repeat_interleave(groups, 1) if groups > 1 else v
    with torch.autocast(q.device.type, enabled=False):  # it would round the weights to bf16
        return coarse_scores(q, k).softmax(-1) @ v
