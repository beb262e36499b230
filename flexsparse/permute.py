"""Rows of a tensor by an index, with a gather for its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    rows = x.index_select(-2, index.clamp(min=0))
    # not >= 0: compiled for a CPU with AVX2, torch 2.13 to 2.15 take that for false of each number
    return torch.where((index > -1)[:, None], rows, 0)


class Permute(torch.autograd.Function):
    """Rows of x by ``index`` (-1 gives zeros). ``inverse`` undoes it, so the gradient is a gather,
    not the scatter-add that index_select would run."""

    @staticmethod
    def forward(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        return gather_rows(x, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gather_rows(grads[0], inverse), None, None


class _PermuteEager(Permute):
    """The same under every transform of ``torch.func``; a compiler takes no Function with a jvp."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return gather_rows(tangents[0], ctx.saved_tensors[0])


def permute(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """:class:`Permute`, with derivatives of all kinds."""
    kind = Permute if torch.compiler.is_compiling() else _PermuteEager
    return kind.apply(x, index, inverse)
