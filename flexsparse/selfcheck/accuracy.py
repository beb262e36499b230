"""The one rule of tolerance: an error to fp64 at most twice that of plain PyTorch.

No tolerance is written down anywhere: what plain PyTorch makes of the same inputs in the same dtype
is the measure, as in the tests of flash-attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_EPS = torch.finfo(torch.float32).eps


def error_ratios(
    ours: Sequence[Tensor],
    plain: Sequence[Sequence[Tensor]],
    exact: Sequence[Tensor],
    inputs: Sequence[Tensor] = (),
    parts: int = 1,
) -> list[float]:
    """The error of each of ours to fp64 over the largest that it may be: right up to 1.

    Errors are root mean squares over a tensor. The largest allowed is twice that of plain PyTorch,
    plus one rounding of the result to its dtype, plus one rounding to fp32 of the problem's largest
    number, results and inputs: over few tokens gradients cancel, and what is left of them is
    rounding that can come out as zero by luck.

    Args:
        ours: results of one problem: an output and its gradients, say.
        plain: the same results, in the same dtypes, of one or more ways to write it in plain
            PyTorch; the largest error of these counts.
        exact: the same results in fp64.
        inputs: what the problem was computed from.
        parts: cut every result into so many along its tokens, the second to last dimension, and
            let the worst part count: what is wrong with a tile of a thousand hides in the mean.

    Returns:
        One ratio for each result. NaN where ours has NaN, so test for ``ratio <= 1``, never for its
        contrary.

    Raises:
        ValueError: results that differ in number, shape or dtype.

    >>> exact = torch.linspace(0.1, 1, 10, dtype=torch.float64)
    >>> plain = exact.float()
    >>> [r <= 1 for r in error_ratios([plain, plain * 1.01], [[plain, plain]], [exact, exact])]
    [True, False]
    """
    largest = max(x.abs().max().item() for x in (*exact, *inputs))
    ratios = []
    for number, (a, c, *others) in enumerate(zip(ours, exact, *plain, strict=True)):
        due = a.dtype, c.shape
        if c.dtype != torch.float64 or any((x.dtype, x.shape) != due for x in (a, *others)):
            kinds = [f"{tuple(x.shape)} {x.dtype}" for x in (a, c, *others)]
            raise ValueError(f"result {number}: ours, exact and plain are {', '.join(kinds)}")
        errors = torch.stack([_rms(x.double() - c, parts) for x in (a, *others)])
        eps = torch.finfo(a.dtype).eps
        bounds = 2 * errors[1:].amax(0) + eps * _rms(c, parts) + min(eps, _EPS) * largest
        each = torch.where(errors[0] == 0, 0.0, errors[0] / bounds)  # inf where nothing is allowed
        ratios.append(each.max().item())
    return ratios


def _rms(x: Tensor, parts: int) -> Tensor:
    """Root mean squares of the parts: [parts]."""
    if parts == 1:
        return x.square().mean().sqrt()[None]
    return x.unflatten(-2, (parts, -1)).square().mean((*range(x.dim() - 2), -1, -2)).sqrt()


def recomputed_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention with the roundings of fused kernels, in plain PyTorch and with no kernel's help.

    Scores and softmax in fp32 at least, each product's operands rounded to the dtype of q; the
    backward takes p from the log-sum-exp and cancels as every fused one does. With the oracle's
    ``attention`` it makes the ``plain`` of :func:`error_ratios`, where torch's own
    ``scaled_dot_product_attention`` would be a kernel that measures itself.

    Args:
        q, k, v: ``[B, H, tokens, D]``.
        mask: bool, broadcastable to ``[B, H, tokens, tokens]``; every row sees a key.
    """
    return _Recomputed.apply(q, k, v, mask)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        s = (_wide(q) @ _wide(k).mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf)
        lse = s.logsumexp(-1, keepdim=True)
        out = (_rounded((s - lse).exp(), q) @ _wide(v)).to(q.dtype)
        ctx.save_for_backward(q, k, v, mask, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, mask, out, lse = ctx.saved_tensors
        scale, g = 1 / math.sqrt(q.shape[-1]), _wide(grads[0])
        # Kernels add up in another order here than in the forward, so that the rounding of large
        # scores does not cancel against that of the log-sum-exp. Turning the channels round makes
        # it so on every processor; a BLAS that adds them up in turn rounds k q^T as it does q k^T.
        s = (_wide(q).flip(-1) @ _wide(k).flip(-1).mT * scale).masked_fill(~mask, -math.inf)
        p = (s - lse).exp()
        ds = p * (g @ _wide(v).mT - (g * out).sum(-1, keepdim=True))
        ds = _rounded(ds, q) * scale
        dq, dk, dv = ds @ _wide(k), ds.mT @ _wide(q), _rounded(p, q).mT @ g
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _rounded(x: Tensor, like: Tensor) -> Tensor:
    return _wide(x.to(like.dtype))
