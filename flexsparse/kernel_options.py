"""The compute blocks with which Inductor lowers FlexAttention on NVIDIA GPUs for small mask blocks.

Inductor's own configs assume mask blocks of 128 rows. Where none of them divides the blocks of a
mask, the forward raises ValueError and the backward NoValidChoicesError. :func:`install` fills just
that hole, by Inductor's documented extension point (a subclass of InductorChoices): any other use
of FlexAttention in the process keeps torch's configs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import dtype as Dtype


class Config(NamedTuple):
    """Rows of a compute block along queries (m) and keys (n), pipeline stages, warps."""

    m: int
    n: int
    stages: int
    warps: int


def _block(rows: int, most: int) -> int:
    """The largest power of two that divides ``rows``, at most ``most``."""
    return min(rows & -rows, most)


def forward_config(head_dim: int, dtype: Dtype, q_rows: int, kv_rows: int) -> Config:
    """Compute blocks of the forward kernel for mask blocks of ``q_rows`` by ``kv_rows``.

    Registers and spills of each choice, as compiled for sm_80, sm_90 and sm_100, stand in
    docs/performance.md; no GPU has timed them yet.
    """
    if dtype == torch.float32:  # twice the bytes: half the rows keep K and V in shared memory
        return Config(_block(q_rows, 32), _block(kv_rows, 32), 1 if head_dim > 128 else 2, 4)
    m, n = _block(q_rows, 128), _block(kv_rows, 64)
    return Config(m, n, 2 if head_dim > 64 else 3, 8 if m == 128 else 4)


def backward_config(head_dim: int, dtype: Dtype, q_rows: int, kv_rows: int) -> Config:
    """Compute blocks of the backward kernel; both of its loops use ``m`` by ``n`` blocks.

    Eight warps halve the accumulators that a thread holds: with four, head dim 128 spills.
    """
    if dtype == torch.float32:
        return Config(16, 16, 1, 4)
    side = min(_block(q_rows, 64), _block(kv_rows, 64))
    return Config(side, side, 2 if head_dim > 64 else 3, 8 if head_dim > 64 else 4)


def _mask_blocks() -> tuple[int, int]:
    """(query rows, key rows) of a mask block of the FlexAttention node that is being lowered."""
    from torch._inductor.virtualized import V

    # as_tuple() ends with query block, key block, mask_mod in every torch version; no other
    # argument of the node is as long a tuple.
    lists = max((a for a in V.graph.current_node.args if isinstance(a, tuple)), key=len)
    return int(lists[-3]), int(lists[-2])


def _make_choices() -> Any:
    from torch._inductor.choices import InductorChoices
    from torch._inductor.template_heuristics.triton import FlexBwDConfig, FlexConfig

    class FlexsparseChoices(InductorChoices):
        def get_flex_attention_fwd_configs(
            self, head_dim: int, dtype: Dtype, device_type: str | None = "cuda"
        ) -> list[Any]:
            configs = super().get_flex_attention_fwd_configs(head_dim, dtype, device_type)
            q_rows, kv_rows = _mask_blocks()
            fitting = [c for c in configs if not q_rows % c.block_m and not kv_rows % c.block_n]
            ours = forward_config(head_dim, dtype, q_rows, kv_rows)
            return fitting or [FlexConfig(*ours)]

        def get_flex_attention_bwd_configs(
            self, head_dim: int, dtype: Dtype, device_type: str | None = "cuda"
        ) -> list[Any]:
            configs = super().get_flex_attention_bwd_configs(head_dim, dtype, device_type)
            q_rows, kv_rows = _mask_blocks()
            fitting = [
                c
                for c in configs
                if not (q_rows % c.block_m1 or q_rows % c.block_m2)
                and not (kv_rows % c.block_n1 or kv_rows % c.block_n2)
            ]
            m, n, stages, warps = backward_config(head_dim, dtype, q_rows, kv_rows)
            return fitting or [FlexBwDConfig(m, n, m, n, stages, warps)]

        def uuid(self) -> str:
            return "flexsparse-1"  # part of Inductor's cache key: change it with the configs

    return FlexsparseChoices()


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
