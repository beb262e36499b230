"""FLOPs of attention, multiply and add counted as two: the formulas behind every count we quote."""

from __future__ import annotations

from flexsparse.tiling import VideoTiling


def attention_flops(
    tokens: int,
    heads: int,
    head_dim: int,
    *,
    tiling: VideoTiling | None = None,
    top_k: int | None = None,
    backward: bool = False,
) -> int:
    """FLOPs of one self-attention, without projections, for one sequence.

    Dense, forward: ``4 L^2 D`` per head (``Q K^T`` and ``P V``). VSA: the fine stage multiplies
    every row with the rows of ``top_k`` tiles, padding included, ``4 L (top_k rows) D``, and the
    coarse stage costs ``4 n^2 D``, with ``L = padded_tokens``. The backward costs 2.5 times the
    forward (five products for two).

    Args:
        tokens: ``L`` of dense attention; ignored when ``tiling`` is given.
        heads, head_dim: as in the model.
        tiling, top_k: both for VSA, neither for dense attention.
        backward: count forward and backward.

    >>> attention_flops(8192, 4, 64)
    68719476736
    """
    if (tiling is None) != (top_k is None):
        raise ValueError("give tiling and top_k together for VSA, or neither for dense attention")
    if tiling is None or top_k is None:
        pairs = tokens * tokens
    else:
        pairs = tiling.padded_tokens * top_k * tiling.rows + tiling.num_tiles**2
    forward = 4 * pairs * heads * head_dim
    return forward * 7 // 2 if backward else forward
