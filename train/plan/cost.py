"""What a step of training costs, in FLOPs: of attention by its sparsity, and of all else."""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from flexsparse.flops import attention_flops
from train.log import logger
from train.plan.trace import total_flops


def attention_cost(model: nn.Module, top_k: float | None) -> dict[str, float]:
    """Sparsity, and FLOPs of self-attention for a clip, forward and backward; {} if not known.

    With `top_k` tiles admitted, about so many for a threshold; None is dense attention.

    Known for models that have `config` (heads, head_dim, layers), `tokens`, `tiling` and `q_rows`,
    as VideoDiT does. For the formula see `flexsparse.flops`.
    """
    if not all(hasattr(model, name) for name in ("config", "tokens", "tiling", "q_rows")):
        return {}
    m = cast(Any, model)
    sparse = {} if top_k is None else {"tiling": m.tiling, "top_k": top_k, "q_rows": m.q_rows}
    c = m.config
    flops = c.layers * attention_flops(m.tokens, c.heads, c.head_dim, **sparse, backward=True)
    sparsity = 0.0
    if top_k is not None:
        share = 1 if m.q_rows is None else m.q_rows / m.tiling.rows
        sparsity = 1 - share * top_k / m.tiling.num_tiles
    return {"attention__sparsity": sparsity, "attention__flops_per_clip": flops}


def other_cost(config: Any) -> int | None:
    """FLOPs of all that training does for a clip but self-attention: forward, and backward to what
    trains, without what checkpointing makes again; a teacher's pass with its attention; None if not
    known.

    Counted on tensors without data, in a second for models of any size. Known for those whose
    config has what VideoDiTConfig has, or as `core` a config that multiplies the same.
    """
    model = getattr(config.model, "core", config.model)
    if not all(hasattr(model, name) for name in ("layers", "video", "context_dim")):
        return None
    training = replace(config.training, local_batch_size=1)
    try:
        one = replace(config, model=model, training=training)
        return total_flops(one, "none", torch.float32)
    except Exception as error:  # of a model or loader that only looks alike: a curve less
        said = str(error).partition("\n")[0]
        logger.warning("no train/flops_per_clip: %s: %s", type(error).__name__, said)
        return None


def training_cost(other: int | None, attention: dict[str, float]) -> dict[str, float]:
    """FLOPs that training takes for a clip, of `other_cost` and `attention_cost`; {} if unknown."""
    if other is None or not attention:
        return {}
    return {"train__flops_per_clip": other + attention["attention__flops_per_clip"]}
