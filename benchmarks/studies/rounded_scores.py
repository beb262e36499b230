"""Coarse scores as tensor cores would compute them, in plain PyTorch on a CPU.

    S = q k^T / sqrt(D)    from fp32 means of tiles, q and k

Operands are rounded as a tensor core takes them. Their products are exact in fp32 and are summed in
fp32, but by the CPU: not in a tensor core's order, nor with what it drops while it sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flexsparse.choice.choose import coarse_scores

Rounding = Callable[[Tensor], Tensor]
Scores = Callable[[Tensor, Tensor], Tensor]


def tf32(x: Tensor) -> Tensor:
    """fp32 to the nearest value with tf32's 10 explicit bits of mantissa, halves away from 0."""
    return cut((x.view(torch.int32) + (1 << 12)).view(torch.float32))


def cut(x: Tensor) -> Tensor:
    """fp32 as a tensor core reads it that expects tf32: without the other 13 bits."""
    return (x.view(torch.int32) & -(1 << 13)).view(torch.float32)


def bf16(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def once(of: Rounding) -> Scores:
    """Scores of rounded operands."""
    return lambda q, k: _product(of(q), of(k)) / math.sqrt(q.shape[-1])


def thrice(of_big: Rounding, of_small: Rounding) -> Scores:
    """Three products of operands in two parts: what rounding leaves, and what it takes."""

    def scores(q: Tensor, k: Tensor) -> Tensor:
        q_big, k_big = of_big(q), of_big(k)
        q_small, k_small = of_small(q - q_big), of_small(k - k_big)
        small = _product(q_small, k_big) + _product(q_big, k_small)
        return (small + _product(q_big, k_big)) / math.sqrt(q.shape[-1])

    return scores


def _product(q: Tensor, k: Tensor) -> Tensor:
    return coarse_scores(q, k, scale=1)


PRECISIONS: dict[str, Scores] = {
    "fp32": coarse_scores,
    "tf32x3": thrice(tf32, cut),  # small parts go to the tensor core as they are
    "bf16x3": thrice(bf16, bf16),
    "tf32": once(tf32),
    "tf32, cut off": once(cut),
    "bf16": once(bf16),  # means in bf16 and an fp32 product are the same
    "bf16, scores too": lambda q, k: bf16(once(bf16)(q, k)),
}
