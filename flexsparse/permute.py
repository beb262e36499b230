"""Rows of a tensor by an index, with a gather for its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    rows = x.index_select(-2, index.clamp(min=0))
    return torch.where((index >= 0)[:, None], rows, 0)


class Permute(torch.autograd.Function):
    """Rows of x by ``index`` (-1 gives zeros). ``inverse`` undoes it, so the gradient is a gather,
    not the scatter-add that index_select would run."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return gather_rows(x, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gather_rows(grads[0], inverse), None, None
