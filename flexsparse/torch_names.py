"""Which torch this is, with which ones the library is proven, and what it uses of torch that is not
public: all of that, so that a torch without it says in one line what it is."""

from collections.abc import Callable

import torch

PROVEN = "2.11", "2.15"
"""The first and the last torch that ``python -m benchmarks.torch_versions`` has passed with."""


def release(version: str) -> tuple[int, ...]:
    """(2, 14) of "2.14.1+cu130" and of "2.14.0a0+nv26.9", which a Version would put before it."""
    return tuple(map(int, version.split(".")[:2]))


def unproven(version: str = torch.__version__) -> str | None:
    """One line where a torch is newer than those that are proven; it is used by its public API."""
    first, last = PROVEN
    if release(version) <= release(last):
        return None
    return f"torch {version} is newer than those that flexsparse is proven with, {first} to {last}"


try:
    from torch._C._autograd import _saved_tensors_hooks_is_enabled  # pyright: ignore
    from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor
    from torch._library.autograd import make_autograd_impl
    from torch.utils._pytree import tree_leaves
except ImportError as error:
    said = unproven() or f"torch {torch.__version__} lacks what flexsparse uses"
    raise ImportError(f"{said}: {error}") from error

saved_tensors_hooks_are_enabled: Callable[[], bool] = _saved_tensors_hooks_is_enabled

__all__ = [
    "PROVEN",
    "get_unwrapped",
    "is_batchedtensor",
    "is_functorch_wrapped_tensor",
    "make_autograd_impl",
    "release",
    "saved_tensors_hooks_are_enabled",
    "tree_leaves",
    "unproven",
]
