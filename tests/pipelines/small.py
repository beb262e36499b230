"""What a small random model of diffusers is, and how it is called."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

HEADS = dict(num_attention_heads=2, attention_head_dim=16)
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Small:
    """A model with every weight awake; `batch(grid, seed)` is what it is called with."""

    build: Callable[[], nn.Module]
    batch: Callable[[Grid, int], dict[str, Any]]
    text: int | Callable[[Grid], int]  # tokens that attend together with the video
    before: int | Callable[[Grid], int] = 0  # how many of them come before it
    frames: int = 1  # in the least grid, which batch() makes of one with fewer

    def model(self, seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
        torch.manual_seed(seed)
        model = self.build().eval()
        with torch.no_grad():
            for parameter in model.parameters():  # biases and zero-initialised ones, too
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model.to(dtype)

    def beside(self, grid: Grid) -> tuple[int, int]:
        """How many tokens attend together with the video, and how many of them before it."""
        text, before = (x if isinstance(x, int) else x(grid) for x in (self.text, self.before))
        return text, before


def run(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    dtype = next(model.parameters()).dtype
    out = model(**tree_map(lambda x: as_dtype(x, dtype), batch)).sample
    return torch.cat(out) if isinstance(out, list) else out


def as_dtype(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
