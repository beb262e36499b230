"""Derivatives of custom operators that ``torch.library`` has no rule for, or drops in silence.

An operator with ``register_autograd`` takes inputs with tangents (``torch.func.jvp``, forward_ad)
without a word, and its result counts as a constant. So each operator of this library that has
derivatives gets, in front of what torch differentiates it backward with, a look for tangents: then
its own rule is applied, or it refuses. Under transforms that are nested this is the one place where
those of the outer ones can be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from flexsparse.torch_names import get_unwrapped, is_batchedtensor, make_autograd_impl

Rule = Callable[[Any, list[Any], list[Any]], list[Tensor | None]]
"""Of the results, the arguments and the arguments' tangents (None: none): the results' tangents."""

_LEVEL = 0  # the only one that torch has; a compiled graph does not set the current one
_LIBRARY = torch.library.Library("flexsparse", "FRAGMENT")  # what it registers lives as long


def set_forward_mode(operator: Any, rule: Rule | None = None) -> None:
    """Give a ``custom_op`` or ``triton_op``, of several results, its rule; without one it refuses.

    It then raises NotImplementedError, as it does under ``torch.func.grad`` and its kind, for which
    ``torch.library`` has no rule.
    """
    overload = operator._opoverload
    # What stands there now. torch.library.get_kernel's would, under a mode, call the one below.
    backward = make_autograd_impl(overload, operator)

    def differentiate(keys: Any, *given: Any) -> Any:
        tangents = [_tangent(x) for x in given]
        if all(x is None for x in tangents):
            if torch._C._are_functorch_transforms_active() and _requires_grad(given):
                raise NotImplementedError(
                    f"{overload} has no rule for torch.func.grad, vjp, jacrev: use "
                    "torch.autograd.grad or backward()"
                )
            return backward(keys, *given)
        if rule is None:
            refuse_tangents(str(overload))
        inputs = [_primal(x) for x in given]
        results = overload(*inputs)
        return tuple(
            x if dx is None else forward_ad.make_dual(x, dx, level=_LEVEL)
            for x, dx in zip(results, rule(results, inputs, tangents))
        )

    _LIBRARY.impl(overload, differentiate, "Autograd", with_keyset=True, allow_override=True)


def set_once(operator: Any) -> None:
    """Let a custom operator that is itself a derivative refuse a second one, in any mode."""

    def refuse(*_: Any) -> NoReturn:
        raise NotImplementedError(
            f"{operator._opoverload} has no derivative: there are first ones only, no double "
            "backward (create_graph=True) and no backward through a tangent (detach it)"
        )

    operator.register_autograd(refuse)
    set_forward_mode(operator)


def refuse_tangents(what: str) -> NoReturn:
    raise NotImplementedError(
        f"{what} has no forward-mode derivative (torch.func.jvp, jacfwd, forward_ad): on a CPU "
        "there are first ones, forward or backward, on CUDA backward only"
    )


def has_tangent(*tensors: Tensor) -> bool:
    """Whether some of these carry a tangent, as far as the innermost transform but vmap can see."""
    return any(_tangent(_unbatched(x)) is not None for x in tensors)


def _unbatched(x: Tensor) -> Tensor:
    """What vmap, which has no rule for looking for tangents, has wrapped."""
    while is_batchedtensor(x):
        x = get_unwrapped(x)
    return x


def _tangent(x: Any) -> Any:
    """The tangent of a tensor, or those of a list that has any; else None."""
    if isinstance(x, Tensor):
        floats = x.is_floating_point()
        return forward_ad.unpack_dual(x, level=_LEVEL).tangent if floats else None
    found = [_tangent(y) for y in x] if isinstance(x, list | tuple) else []
    return found if any(y is not None for y in found) else None


def _primal(x: Any) -> Any:
    if isinstance(x, list | tuple):
        return [_primal(y) for y in x]
    return forward_ad.unpack_dual(x, level=_LEVEL).primal if isinstance(x, Tensor) else x


def _requires_grad(x: Any) -> bool:
    if isinstance(x, list | tuple):
        return any(_requires_grad(y) for y in x)
    return isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled()
