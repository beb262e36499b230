"""FLOPs of attention, multiply and add counted as two: the formulas behind every count we quote."""

from __future__ import annotations

from flexsparse.tiling import VideoTiling


def attention_flops(
    tokens: int,
    heads: int,
    head_dim: int,
    *,
    tiling: VideoTiling | None = None,
    top_k: float | None = None,
    q_rows: int | None = None,
    backward: bool = False,
) -> int:
    """FLOPs of one self-attention, without projections, for one sequence.

    Dense, forward: ``4 L^2 D`` per head (``Q K^T`` and ``P V``). VSA: the fine stage multiplies
    every row with the rows of ``top_k`` tiles, padding included, ``4 L (top_k rows) D``, and the
    coarse stage costs ``4 n^2 D``, with ``L = n rows``. BSA multiplies ``n q_rows`` rows in place
    of L, and its scores cost ``2 n^2 D``, without a backward; pruning and restoring, which read
    each query once, are not counted. Rows of text, if there are any, are multiplied with all rows,
    and all rows with them. The backward costs 2.5 times the forward (five products for two).

    Args:
        tokens: ``L`` of dense attention; ignored when ``tiling`` is given.
        heads, head_dim: as in the model.
        tiling, top_k: both for VSA and BSA, neither for dense attention. Where a rule admits more
            tiles in one row than in another, top_k is their mean.
        q_rows: BSA's rows of queries for a tile, ``Windows.kept_rows``; None for VSA.
        backward: count forward and backward.

    >>> attention_flops(8192, 4, 64)
    68719476736
    """
    if (tiling is None) != (top_k is None):
        raise ValueError("give tiling and top_k together for VSA, or neither for dense attention")
    if q_rows is not None and tiling is None:
        raise ValueError(f"q_rows={q_rows} is for BSA: give tiling and top_k, too")
    per_pair = heads * head_dim
    if tiling is None or top_k is None:
        return 4 * tokens * tokens * per_pair * (7 if backward else 2) // 2
    n, rows, words = tiling.num_tiles, tiling.rows, tiling.text_tiles * tiling.rows
    of_text = words * tiling.padded_tokens
    if q_rows is None:
        forward = 4 * (round(n * rows * (top_k * rows + words)) + of_text + n**2) * per_pair
        return forward * 7 // 2 if backward else forward
    fine = 4 * (round(n * q_rows * (top_k * rows + words)) + of_text) * per_pair
    return fine * (7 if backward else 2) // 2 + 2 * n**2 * per_pair
