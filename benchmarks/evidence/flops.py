"""What a training step multiplies: attention by its formula, all else as torch counts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flexsparse import VideoTiling
from models.attention import Slot


@dataclass(frozen=True)
class StepFlops:
    """Of one clip, forward and backward, multiply and add counted as two."""

    parameters: int
    """Of the model, the slots' own included."""

    attention: int
    """Self-attention without its projections, by `flexsparse.flops`, with the tiles counted."""

    other: int
    """Everything else: projections, gates, cross-attention, MLP, head."""


@dataclass(frozen=True)
class _WithoutAttention:
    """The slot of a model whose self-attention multiplies nothing; gates as the slot has them."""

    slot: Any

    def tiling(self, grid: tuple[int, int, int], text: int = 0) -> VideoTiling | None:
        return self.slot.tiling(grid, text)

    def top_k_for(self, tiling: VideoTiling | None) -> int | None:
        return self.slot.top_k_for(tiling)

    def q_rows_for(self, tiling: VideoTiling | None) -> int | None:
        return self.slot.q_rows_for(tiling)

    def build(self, dim: int, num_heads: int, tiling: VideoTiling | None) -> nn.Module:
        return _Gates(self.slot.build(dim, num_heads, tiling))


class _Gates(nn.Module):
    def __init__(self, slot: nn.Module) -> None:
        super().__init__()
        self.linears = nn.ModuleList(m for m in slot.modules() if isinstance(m, nn.Linear))

    def reset_parameters(self) -> None:
        """None that count."""

    def forward(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, tiling: Any) -> Tensor:
        out = q + k + v
        for linear in self.linears:
            out = out * linear(x).unflatten(-1, (q.shape[1], -1)).transpose(1, 2)
        return out


def step_flops(config: Any, attention: Sequence[int]) -> StepFlops:
    """Those of a PixelDiTConfig's model, built without memory; `attention` has each layer's own."""
    slot: Slot = _WithoutAttention(config.dit.attention)
    with torch.device("meta"):
        model = replace(config, dit=replace(config.dit, attention=slot)).build()
        video = torch.empty(1, config.dit.channels, *config.dit.video)
        context = torch.empty(1, 16, config.dit.context_dim)
        time = torch.empty(1)
    with FlopCounterMode(display=False) as counter:
        model(video, time, context).sum().backward()
    parameters = sum(p.numel() for p in model.parameters())
    return StepFlops(parameters, sum(attention), counter.get_total_flops())
