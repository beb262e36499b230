"""The compute blocks with which Inductor lowers FlexAttention on NVIDIA GPUs for small mask blocks.

Inductor's own configs assume mask blocks of 128 rows. Where none of them divides the blocks of a
mask, the forward raises ValueError and the backward NoValidChoicesError. :func:`install` puts ours
in, by Inductor's documented extension point (a subclass of InductorChoices), in two cases alone:
where torch's would have raised, and in calls that carry :data:`MARK` in their kernel options, as
``flexsparse.flex_attention`` makes them. Any other use of FlexAttention keeps torch's configs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import dtype as Dtype

MARK = "FLEXSPARSE_TILES"  # reaches the kernel as a constant that nothing reads


class Config(NamedTuple):
    """Rows of a compute block along queries (m) and keys (n), pipeline stages, warps."""

    m: int
    n: int
    stages: int
    warps: int


def _block(rows: int, most: int) -> int:
    """The largest power of two that divides ``rows``, at most ``most``."""
    return min(rows & -rows, most)


def forward_config(
    head_dim: int, dtype: Dtype, q_rows: int, kv_rows: int, major: int = 9
) -> Config:
    """Compute blocks of the forward kernel for mask blocks of ``q_rows`` by ``kv_rows``.

    ``major`` is the GPU's compute capability. Registers and spills of each choice, as compiled for
    sm_80, sm_90 and sm_100, stand in docs/performance.md; no GPU has timed them yet.
    """
    if dtype == torch.float32:  # twice the bytes: half the rows keep K and V in shared memory
        return Config(_block(q_rows, 32), _block(kv_rows, 32), 1 if head_dim > 128 else 2, 4)
    m = _block(q_rows, 128)
    n = _block(kv_rows, 32 if major < 9 and head_dim <= 64 else 64)
    # With four warps, ragged tilings with gates spill before sm_90, and on sm_100 at head dim 64.
    wide = m == 128 or major < 9 or (major >= 10 and head_dim <= 64)
    return Config(m, n, 2 if head_dim > 64 else 3, 8 if wide else 4)


def backward_config(
    head_dim: int, dtype: Dtype, q_rows: int, kv_rows: int, major: int = 9
) -> Config:
    """Compute blocks of the backward kernel: its loop over queries steps by ``m`` for ``n`` keys,
    its loop over keys by ``m`` for ``n`` queries.

    Eight warps halve the accumulators that a thread holds: with four, head dim 128 spills. Before
    sm_90, 64 x 64 spills even so.
    """
    if dtype == torch.float32:
        return Config(16, 16, 1, 4)
    n = min(_block(q_rows, 64), _block(kv_rows, 64))
    m = n if major >= 9 else min(n, 32)
    return Config(m, n, 3 if head_dim <= 64 else 2, 4 if head_dim <= 64 and major >= 9 else 8)


def _lowered_call() -> tuple[bool, int, int]:
    """The FlexAttention node that is being lowered: is it marked, query and key rows of a block."""
    from torch._inductor.virtualized import V

    arguments = V.graph.current_node.args
    marked = any(MARK in a for a in arguments if isinstance(a, dict))
    # as_tuple() ends with query block, key block, mask_mod in every torch version; no other
    # argument of the node is as long a tuple.
    lists: Any = max((a for a in arguments if isinstance(a, tuple)), key=len)
    return marked, int(lists[-3]), int(lists[-2])


def _make_choices() -> Any:
    from torch._inductor.choices import InductorChoices
    from torch._inductor.template_heuristics.triton import FlexBwDConfig, FlexConfig

    class FlexsparseChoices(InductorChoices):
        def get_flex_attention_fwd_configs(
            self, head_dim: int, dtype: Dtype, device_type: str | None = "cuda"
        ) -> list[Any]:
            marked, q_rows, kv_rows = _lowered_call()
            configs = super().get_flex_attention_fwd_configs(head_dim, dtype, device_type)
            if not marked and any(_divides(c, q_rows, kv_rows) for c in configs):
                return configs
            return [FlexConfig(*forward_config(head_dim, dtype, q_rows, kv_rows, _major()))]

        def get_flex_attention_bwd_configs(
            self, head_dim: int, dtype: Dtype, device_type: str | None = "cuda"
        ) -> list[Any]:
            marked, q_rows, kv_rows = _lowered_call()
            configs = super().get_flex_attention_bwd_configs(head_dim, dtype, device_type)
            if not marked and any(_divides(c, q_rows, kv_rows) for c in configs):
                return configs
            m, n, stages, warps = backward_config(head_dim, dtype, q_rows, kv_rows, _major())
            return [FlexBwDConfig(m, n, n, m, stages, warps)]

        def uuid(self) -> str:
            return "flexsparse-1"  # part of Inductor's cache key: change it with the configs

    return FlexsparseChoices()


def _major() -> int:
    return torch.cuda.get_device_capability()[0]


def _divides(config: Any, q_rows: int, kv_rows: int) -> bool:
    """Whether all compute blocks of an Inductor config, of either direction, divide the mask's."""
    sizes = vars(config).items()
    return not any(
        (q_rows if name.startswith("block_m") else kv_rows) % size
        for name, size in sizes
        if name.startswith("block_")
    )


def install() -> None:
    """Make the configs above known to Inductor, in every thread; once, at import.

    A choices class that somebody else has installed is left alone: mask blocks that no config of
    it divides then raise Inductor's own error.
    """
    from torch._inductor import config, virtualized

    if config.inductor_choices_class is None:
        config.inductor_choices_class = _make_choices
        if hasattr(virtualized.threadlocal, virtualized._choices._key):  # made before we came
            virtualized.V.set_choices_handler(_make_choices())
