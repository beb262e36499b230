"""Bytes of a rank, from the shapes of the parameters and how they are sharded."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class States:
    """Bytes on the first rank, which has the most where shards do not come out even."""

    weights: int
    gradients: int
    moments: int
    average: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.average


def states(model: nn.Module, config: Any, shards: int) -> States:
    """What lasts from step to step, kept in fp32 (moments in bf16 where the optimizer is told so).

    FSDP cuts every parameter along its first dimension, in equal parts of its rows, rounded up.
    """
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    moment = 2 if config.optimizer.implementation == "fused_opt_states_bf16" else 4
    own = shard_numel(trained, shards)
    return States(
        weights=4 * shard_numel(parameters, shards),
        gradients=4 * own,
        moments=2 * moment * own,
        average=4 * own if config.ema.enable else 0,
    )


def shard_numel(parameters: Iterable[nn.Parameter], shards: int) -> int:
    """Numbers in the first rank's part."""
    return sum(math.ceil(p.shape[0] / shards) * p[:1].numel() for p in parameters)


def gathered(model: Any, itemsize: int) -> int:
    """Bytes of whole weights and gradients while a step runs: two blocks' weights (one computes,
    the next arrives), what is outside the blocks, and the gradients of one block, as they come and
    in fp32 as they are summed up over the ranks."""
    blocks = [list(block.parameters()) for block in model.layers.children()]
    block = sum(p.numel() for p in blocks[0])
    trained = sum(p.numel() for p in blocks[0] if p.requires_grad)
    outside = sum(p.numel() for p in model.parameters()) - len(blocks) * block
    return itemsize * (min(2, len(blocks)) * block + outside) + (itemsize + 4) * trained
