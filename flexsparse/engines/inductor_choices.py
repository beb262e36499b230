"""Compute blocks that divide small mask blocks, for torch 2.11 to 2.13 alone.

Up to torch 2.13 the configs of Inductor assume mask blocks of 128 rows. Where none of them divides
the blocks of a mask, the forward raises ValueError unless it is given others as kernel options, and
the backward NoValidChoicesError: it drops its config before it reads the caller's options.
:func:`install` puts configs of ``kernel_configs.py`` in there, by Inductor's extension point
(a subclass of InductorChoices); wherever torch has a config that divides, it keeps its own. From
2.14 on torch does this itself: this file goes when 2.13 does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from flexsparse.engines.kernel_configs import backward_config, forward_config
from flexsparse.engines.kernel_options import gpu


def install() -> None:
    """Make the configs known to Inductor, in every thread; once, at import.

    A choices class that somebody else has installed is left alone: mask blocks that no config of
    it divides then raise Inductor's own error.
    """
    from torch._inductor import config, virtualized

    if config.inductor_choices_class is None:
        config.inductor_choices_class = make_choices
        if hasattr(virtualized.threadlocal, virtualized._choices._key):  # made before we came
            virtualized.V.set_choices_handler(make_choices())


def make_choices() -> Any:
    """Inductor's choices, with ours where torch would raise."""
    from torch._inductor.choices import InductorChoices
    from torch._inductor.template_heuristics.triton import (  # pyright: ignore[reportMissingImports]
        FlexBwDConfig,
        FlexConfig,
    )

    class FlexsparseChoices(InductorChoices):
        def get_flex_attention_fwd_configs(self, *args: Any, **options: Any) -> list[Any]:
            configs = super().get_flex_attention_fwd_configs(*args, **options)
            return _dividing(configs, forward_config, FlexConfig, (*args, *options.values()))

        def get_flex_attention_bwd_configs(self, *args: Any, **options: Any) -> list[Any]:
            configs = super().get_flex_attention_bwd_configs(*args, **options)
            return _dividing(configs, backward_config, FlexBwDConfig, (*args, *options.values()))

        def uuid(self) -> str:
            return "flexsparse"  # in Inductor's cache key since torch 2.13

    return FlexsparseChoices()


def _dividing(configs: list[Any], table: Callable, kind: Callable, told: tuple) -> list[Any]:
    """torch's configs where one divides the blocks of the mask that is being lowered, else ours.

    ``told`` is what torch says of the call: a head dim, an int, and a dtype, wherever they stand.
    """
    blocks = lowered_blocks()
    if blocks is None or any(_divides(config, *blocks) for config in configs):
        return configs
    head_dim = next(x for x in told if isinstance(x, int))
    dtype = next(x for x in told if isinstance(x, torch.dtype))
    return [kind(*table(head_dim, dtype, *blocks, *gpu()))]


def lowered_blocks() -> tuple[int, int] | None:
    """Query and key rows of a mask block in the FlexAttention call that is being lowered; None
    where they are no plain ints, as in graphs of dynamic shapes."""
    from torch._inductor.virtualized import V

    # BlockMask.as_tuple() ends with the two sizes and mask_mod, which is a subgraph here; what
    # score_mod and mask_mod capture are tuples of other nodes.
    for entry in V.graph.current_node.args:
        match entry:
            case (*_, int(q_rows), int(kv_rows), torch.fx.Node(op="get_attr")):
                return q_rows, kv_rows
    return None


def _divides(config: Any, q_rows: int, kv_rows: int) -> bool:
    """Whether all compute blocks of an Inductor config, of either direction, divide the mask's."""
    return not any(
        (q_rows if name.startswith("block_m") else kv_rows) % size
        for name, size in vars(config).items()
        if name.startswith("block_")
    )
