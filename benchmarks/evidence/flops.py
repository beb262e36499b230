"""What a training step multiplies: attention by its formula, all else as a plan counts it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from train.demo.model import PixelDiTConfig
from train.plan.trace import total_flops
from train.trainer import Trainer


@dataclass(frozen=True)
class StepFlops:
    """Of one clip, forward and backward, multiply and add counted as two."""

    parameters: int
    """Of the model, the slots' own included."""

    other: int
    """Everything but self-attention: projections, gates, cross-attention, MLP, head."""


def step_flops(config: Trainer.Config) -> StepFlops:
    """Those of a run on a PixelDiT; nothing is allocated."""
    model = config.model
    assert isinstance(model, PixelDiTConfig), "the experiments' model"
    one = replace(config, model=model.core, training=replace(config.training, local_batch_size=1))
    with torch.device("meta"):
        parameters = sum(p.numel() for p in model.build().parameters())
    return StepFlops(parameters, total_flops(one, "none", torch.float32))
