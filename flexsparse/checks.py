"""Checks at the border: one line, with the numbers and the fix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flexsparse.tiling import VideoTiling
from flexsparse.torch_names import (
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
)


def check_alike(**tensors: Tensor) -> None:
    """Raise ValueError unless query, key and value fit together; their names are the caller's.

    ``[B, Hq, Lq, D]``, ``[B or 1, Hkv, Lk, D]``, ``[B or 1, Hkv, Lk, Dv]``, one device, one
    floating dtype.
    """
    (q_name, q), (k_name, k), (v_name, v) = tensors.items()
    names = f"{q_name}, {k_name} and {v_name}"
    kinds = {f"{x.device}/{x.dtype}": None for x in tensors.values()}
    if len(kinds) > 1 or not q.is_floating_point():
        raise ValueError(f"{names} must share device and a floating dtype, not {', '.join(kinds)}")
    if any(x.dim() != 4 for x in tensors.values()):
        raise ValueError(f"{names} must be [batch, heads, tokens, dim], not {_shapes(tensors)}")
    if k.shape[:3] != v.shape[:3] or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"{k_name} and {v_name} must agree in batch, heads and tokens, {q_name} and {k_name} "
            f"in dim: {names} are {_shapes(tensors)}"
        )
    if k.shape[0] not in (1, q.shape[0]):
        raise ValueError(f"{k_name} has batch {k.shape[0]}, {q_name} {q.shape[0]}: make them equal")
    if not all(x.numel() for x in tensors.values()):
        raise ValueError(f"{names} must not be empty: {_shapes(tensors)}")


def as_autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Where autocast is on and dtypes are mixed, all in autocast's dtype, as
    ``scaled_dot_product_attention`` casts them (fp64 stays); else what was given.

    Norms leave q and k in fp32 beside a v in bf16. Tensors that are alike keep their dtype.
    """
    some = [x for x in tensors if x is not None]
    device = some[0].device.type
    if len({x.dtype for x in some}) == 1 or not torch.amp.is_autocast_available(device):
        return tensors
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    kinds = torch.float32, torch.float16, torch.bfloat16
    return tuple(x if x is None or x.dtype not in kinds else x.to(dtype) for x in tensors)


def check_heads(q: Tensor, k: Tensor, enable_gqa: bool, names: tuple[str, str]) -> None:
    """Raise ValueError unless each head of q has a head of k to read."""
    heads, kv_heads = q.shape[1], k.shape[1]
    if heads % kv_heads or (heads != kv_heads and not enable_gqa):
        raise ValueError(
            f"{names[0]} has {heads} heads, {names[1]} {kv_heads}: make them equal, or pass "
            "enable_gqa=True with a divisor"
        )


def _shapes(tensors: dict[str, Tensor]) -> str:
    return ", ".join(str(tuple(x.shape)) for x in tensors.values())


def can_be_read(x: Tensor) -> bool:
    """Whether a check may ask for values of x: that needs no waiting for a GPU, and there are some,
    other than under torch.compile, for fake tensors, where operators are traced
    (``torch.func.linearize``) and, each in its own way, under vmap."""
    if x.device.type != "cpu" or type(x) is not Tensor or torch.compiler.is_compiling():
        return False
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None:
        return False
    while is_functorch_wrapped_tensor(x):
        if is_batchedtensor(x):
            return False
        x = get_unwrapped(x)
    return True


def check_sparsity(sparsity: float) -> None:
    """Raise ValueError unless a slot can aim at this."""
    number = isinstance(sparsity, int | float) and not isinstance(sparsity, bool)
    if not (number and 0 <= sparsity < 1):
        raise ValueError(
            f"sparsity is {sparsity!r}; give 0 <= sparsity < 1: 0.875 keeps 1 tile in 8"
        )


def check_options(tile: tuple[int, int, int] | None, query_tiles: int) -> None:
    """Raise ValueError unless a slot can have these, for some video."""
    if tile is not None:
        VideoTiling((1, 1, 1), tile)
    if type(query_tiles) is not int or query_tiles < 1:
        raise ValueError(f"query_tiles={query_tiles!r} must be an int of at least 1")


def check_query_tiles(query_tiles: int, tiling: VideoTiling) -> None:
    """Raise ValueError unless blocks of so many query tiles can be cut from ``tiling``."""
    n = tiling.num_tiles
    if type(query_tiles) is not int or not 1 <= query_tiles <= n:
        raise ValueError(f"query_tiles={query_tiles!r} must be an int in 1..{n}, the tiles")


def check_text_lengths(text_lengths: Tensor | None, tiling: VideoTiling, q: Tensor) -> None:
    """Raise ValueError unless these can be the lengths of the texts in the batch of ``q``."""
    if text_lengths is None:
        return
    if not tiling.text:
        raise ValueError(
            "text_lengths are given, but the tiling has no text: make it VideoTiling(..., text=N)"
        )
    if tiling.parts:
        raise ValueError(
            f"text_lengths are given, and parts={tiling.parts} of the text, which have one length "
            "in a batch: leave out one of them"
        )
    if text_lengths.shape != q.shape[:1] or text_lengths.is_floating_point():
        raise ValueError(
            f"text_lengths is {text_lengths.dtype} {list(text_lengths.shape)}: give an int for "
            f"each sequence of the batch, [{q.shape[0]}]"
        )
    if text_lengths.device != q.device:
        raise ValueError(f"text_lengths is on {text_lengths.device}, q on {q.device}: move it")
    if can_be_read(text_lengths):
        least, most = int(text_lengths.min()), int(text_lengths.max())
        if least < 0 or most > tiling.text:
            raise ValueError(
                f"text_lengths are {least} to {most}, but the tiling has text={tiling.text}: "
                f"give lengths of 0 to {tiling.text}"
            )
