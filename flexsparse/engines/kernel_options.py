"""With which options FlexAttention's kernels run for masks of tiles on NVIDIA GPUs.

All of them are torch's public ``kernel_options``: compute blocks by ``kernel_configs.py``, and what
is known of a mask of tiles and torch cannot know. What a caller says, such as ``fwd_BLOCK_M`` or
``num_warps``, goes before. From torch 2.14 on that is all; for 2.11 to 2.13 see
``inductor_choices.py``.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, noop_mask

from flexsparse.choice.block_mask import ChosenTiles
from flexsparse.engines.kernel_configs import backward_config, forward_config
from flexsparse.torch_names import release

TAKES_OPTIONS = release(torch.__version__) >= (2, 14)
"""Whether torch reads the caller's compute blocks in both directions."""


def options_for(
    q: Tensor, mask: BlockMask | ChosenTiles, given: dict[str, Any], has_score_mod: bool
) -> dict[str, Any]:
    """Kernel options of attention of ``q`` under a mask of tiles; what is ``given`` goes first."""
    lengths, blocks = mask.seq_lengths, mask.BLOCK_SIZE
    sizes = int(q.shape[-1]), q.dtype, *blocks, *gpu()
    known = {
        # torch asks for multiples of 128; compute blocks divide mask blocks, so these suffice
        "IS_DIVISIBLE": not any(size % block for size, block in zip(lengths, blocks)),
        **_named("fwd_", _FORWARD, forward_config(*sizes), given),
        **_named("bwd_", _BACKWARD, backward_config(*sizes), given),
    }
    if not has_score_mod:  # which may hide what the mask shows
        known["ROWS_GUARANTEED_SAFE"] = True  # every block sees a tile, every tile has a token
    if "FORCE_USE_FLEX_ATTENTION" not in given:  # torch takes one or the other
        known["BACKEND"] = "TRITON"  # the kernel for few queries has configs of its own
    return {**known, **given}


def folded_scale(
    head_dim: int, trains: bool, given: dict[str, Any] | None
) -> tuple[float, dict[str, Any]]:
    """The ``scale`` and options with which loops multiply scores least, where q was multiplied by
    the rest of ``1 / sqrt(D)`` before.

    ``scale=1`` leaves the factor log2(e), which the backward has for nothing, as part of an FFMA.
    ``PRESCALE_QK`` takes it out of the forward's loop, too, but multiplies q by ln 2 and log2(e)
    in q's dtype, with a rounding for each; a backward multiplies k so in one of its loops, rounds
    other numbers than the forward has rounded, and makes of large logits a softmax that does not
    add up to 1. Therefore it is for no_grad alone. With head dims up to 64 it makes ptxas serialise
    the products of Hopper's tensor cores (C7515; seen: Triton 3.6 and 3.8): not there, nor, for
    one rule, on other GPUs. FlashAttention scales by itself, for nothing.
    """
    given = given or {}
    if given.get("BACKEND") == "FLASH":
        return 1 / math.sqrt(head_dim), given
    if trains or head_dim <= 64:
        return 1.0, given
    return math.log(2), {"PRESCALE_QK": True, **given}


_FORWARD = "BLOCK_M", "BLOCK_N", "num_stages", "num_warps"
_BACKWARD = "BLOCK_M1", "BLOCK_N1", "BLOCK_M2", "BLOCK_N2", "num_stages", "num_warps"


def _named(
    direction: str, names: tuple[str, ...], config: tuple[int, ...], given: dict[str, Any]
) -> dict[str, int]:
    """A config as options of one direction, which torch prefers to those of both: without what is
    given for both."""
    return {f"{direction}{name}": x for name, x in zip(names, config) if name not in given}


@torch.compiler.assume_constant_result
def gpu() -> tuple[int, int | None]:
    """Compute capability's major number, and the shared memory that a block may have."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return _major(), getattr(properties, "shared_memory_per_block_optin", None)


def check_flash(q: Tensor, mask: BlockMask | None, trains: bool = True) -> None:
    """Raise ValueError unless ``BACKEND="FLASH"`` can compute attention of ``q`` under ``mask``.

    Block rules of FlashAttention 4, and what torch asks of the lists: full blocks, and since 2.14
    only where the call ``trains``. The mask must have its whole ``mask_mod``: with a trivial one
    torch drops the lists, up to 2.13 in both directions, since then in the backward alone, which
    gives dense gradients of a sparse forward, without an error.
    """
    if not _has_flash():
        raise ValueError(
            'BACKEND="FLASH" needs the package flash-attn-4, which is not installed: install it, '
            "or leave BACKEND out"
        )
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f'BACKEND="FLASH" computes in float16 and bfloat16, not {q.dtype}')
    if mask is None:
        return
    if mask.full_kv_indices is None and (trains or not TAKES_OPTIONS):
        raise ValueError(
            'BACKEND="FLASH" needs tiles without padding; every tile of this mask has some: choose '
            "a tile that fills its rows, such as (4, 4, 8)"
        )
    if mask.mask_mod is noop_mask and (trains or not TAKES_OPTIONS):
        raise ValueError(
            'BACKEND="FLASH" drops the lists of a mask without a mask_mod, and attends to all: '
            "give BlockMask a mask_mod that says what its lists say, as vsa_mask has one"
        )
    rows, keys = mask.BLOCK_SIZE
    major = _major()
    least = 256 if major >= 10 else 128
    if rows % least or (major < 10 and rows != least) or keys != 128:
        due = "a multiple of 256" if major >= 10 else "128"
        raise ValueError(
            f'BACKEND="FLASH" takes blocks of {due} query rows by 128 key rows on sm_{major}0; '
            f"these are {rows} by {keys}: use tiles of 128 rows, such as (4, 4, 8), and query_tiles"
        )


@torch.compiler.assume_constant_result
def _has_flash() -> bool:
    try:
        return find_spec("flash_attn.cute") is not None
    except ImportError:
        return False


@torch.compiler.assume_constant_result
def _major() -> int:
    return torch.cuda.get_device_capability()[0]
