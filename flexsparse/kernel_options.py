"""With which options FlexAttention's kernels run for masks of tiles on NVIDIA GPUs.

Inductor's own configs assume mask blocks of 128 rows. Where none of them divides the blocks of a
mask, the forward raises ValueError and the backward NoValidChoicesError. :func:`install` puts those
of ``kernel_configs.py`` in, by Inductor's documented extension point (a subclass of
InductorChoices), in two cases alone: where torch's would have raised, and in calls that carry
:data:`MARK` in their kernel options, as ``flexsparse.flex_attention`` makes them. Any other use of
FlexAttention keeps torch's configs. What a caller says in ``kernel_options``, such as
``fwd_BLOCK_M`` or ``bwd_num_warps``, goes before the tables.
"""

from __future__ import annotations

import zlib
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch import dtype as Dtype
from torch.nn.attention.flex_attention import BlockMask

from flexsparse.kernel_configs import TABLES, backward_config, forward_config

MARK = "FLEXSPARSE_TILES"  # reaches the kernel as a constant that nothing reads


def hash_of(tables: Any) -> int:
    """A number that changes with the tables, for the key by which Inductor caches kernels."""
    return zlib.crc32(repr(tables).encode())


TABLES_HASH = hash_of(TABLES)


def options_for(mask: BlockMask, given: dict[str, Any], has_score_mod: bool) -> dict[str, Any]:
    """Kernel options of a mask of tiles: what is known of it and torch cannot know, then what the
    caller has ``given``."""
    lengths, blocks = mask.seq_lengths, mask.BLOCK_SIZE
    known = {
        MARK: TABLES_HASH,
        # torch asks for multiples of 128; compute blocks divide mask blocks, so these suffice
        "IS_DIVISIBLE": not any(size % block for size, block in zip(lengths, blocks)),
    }
    if not has_score_mod:  # which may hide what the mask shows
        known["ROWS_GUARANTEED_SAFE"] = True  # every block sees a tile, every tile has a token
    if "FORCE_USE_FLEX_ATTENTION" not in given:  # torch takes one or the other
        known["BACKEND"] = "TRITON"  # the kernel for few queries has configs of its own
    return {**known, **given}


def check_flash(q: Tensor, mask: BlockMask | None) -> None:
    """Raise ValueError unless ``BACKEND="FLASH"`` can compute attention of ``q`` under ``mask``.

    Block rules of FlashAttention 4 as torch 2.11 calls it. Its mask must keep the whole
    ``mask_mod``: with a trivial one it drops the lists.
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
    if mask.full_kv_indices is None:
        raise ValueError(
            'BACKEND="FLASH" needs tiles without padding; every tile of this mask has some: choose '
            "a tile that fills its rows, such as (4, 4, 8)"
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


def _lowered_call() -> tuple[bool, int | None, int | None]:
    """The FlexAttention node that is being lowered: is it marked, query and key rows of a block;
    None where these are no plain ints, as in graphs of dynamic shapes."""
    from torch._inductor.virtualized import V

    arguments = V.graph.current_node.args
    marked = any(MARK in a for a in arguments if isinstance(a, dict))
    # A BlockMask's as_tuple() has 13 entries, query block, key block and mask_mod the last. Tuples
    # of what score_mod and mask_mod capture may be as long, but stand behind it.
    for lists in arguments:
        if isinstance(lists, tuple) and len(lists) == 13:
            q_rows, kv_rows = lists[-3:-1]
            if isinstance(q_rows, int) and isinstance(kv_rows, int):
                return marked, q_rows, kv_rows
            break
    return marked, None, None


def _make_choices() -> Any:
    from torch._inductor.choices import InductorChoices
    from torch._inductor.template_heuristics.triton import FlexBwDConfig, FlexConfig

    class FlexsparseChoices(InductorChoices):
        def get_flex_attention_fwd_configs(
            self, head_dim: int, dtype: Dtype, device_type: str | None = "cuda"
        ) -> list[Any]:
            marked, q_rows, kv_rows = _lowered_call()
            configs = super().get_flex_attention_fwd_configs(head_dim, dtype, device_type)
            if q_rows is None or kv_rows is None:
                return configs
            if not marked and any(_divides(c, q_rows, kv_rows) for c in configs):
                return configs
            return [FlexConfig(*forward_config(head_dim, dtype, q_rows, kv_rows, *_gpu()))]

        def get_flex_attention_bwd_configs(
            self, head_dim: int, dtype: Dtype, device_type: str | None = "cuda"
        ) -> list[Any]:
            marked, q_rows, kv_rows = _lowered_call()
            configs = super().get_flex_attention_bwd_configs(head_dim, dtype, device_type)
            if q_rows is None or kv_rows is None:
                return configs
            if not marked and any(_divides(c, q_rows, kv_rows) for c in configs):
                return configs
            return [FlexBwDConfig(*backward_config(head_dim, dtype, q_rows, kv_rows, *_gpu()))]

        def uuid(self) -> str:
            return f"flexsparse-{TABLES_HASH}"  # in Inductor's cache key since torch 2.13

    return FlexsparseChoices()


def _gpu() -> tuple[int, int | None]:
    """Compute capability's major number, and the shared memory that a block may have."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return _major(), getattr(properties, "shared_memory_per_block_optin", None)


def _divides(config: Any, q_rows: int, kv_rows: int) -> bool:
    """Whether all compute blocks of an Inductor config, of either direction, divide the mask's."""
    sizes = vars(config).items()
    return not any(
        (q_rows if name.startswith("block_m") else kv_rows) % size
        for name, size in sizes
        if name.startswith("block_")
    )


def install() -> None:
    """Make the configs known to Inductor, in every thread; once, at import.

    A choices class that somebody else has installed is left alone: mask blocks that no config of
    it divides then raise Inductor's own error.
    """
    from torch._inductor import config, virtualized

    if config.inductor_choices_class is None:
        config.inductor_choices_class = _make_choices
        if hasattr(virtualized.threadlocal, virtualized._choices._key):  # made before we came
            virtualized.V.set_choices_handler(_make_choices())
