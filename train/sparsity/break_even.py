"""From which sparsity on sparse attention is faster than dense attention, measured."""

import logging
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from flexsparse.choice.scaled import as_rule
from train.log import logger
from train.sparsity.annealing import annealed


@dataclass(frozen=True)
class BreakEven:
    """Seconds of one layer's attention, forward and backward, on this device; medians.

    Attributes:
        dense: with the dense kernel.
        all_tiles: with the sparse kernels and every tile admitted.
        at_target: with the sparse kernels at `target`, the sparsity that training ends at.
    """

    dense: float
    all_tiles: float
    at_target: float
    target: float

    @property
    def pays(self) -> bool:
        """Whether sparse attention is faster at its target."""
        return self.at_target < self.dense

    @property
    def sparsity(self) -> float:
        """Below it the dense kernel is faster. The time is linear in the tiles admitted."""
        if self.all_tiles <= self.dense:
            return 0.0
        if not self.pays:
            return self.target
        return self.target * (self.all_tiles - self.dense) / (self.all_tiles - self.at_target)

    def __str__(self) -> str:
        times = (self.dense, self.all_tiles, self.at_target)
        dense, every, target = (f"{1e3 * seconds:.1f}" for seconds in times)
        told = f"is the faster one above a sparsity of {self.sparsity:.0%}"
        if not self.pays:
            told = "is slower than dense attention even at its target"
        return (
            f"sparse attention {told} (a layer, forward and backward: dense {dense} ms, all tiles "
            f"{every} ms, at {self.target:.1%} {target} ms)"
        )


def measure_break_even(
    model: Any,
    batch: int,
    dtype: torch.dtype,
    *,
    compile: bool = False,
    rounds: int = 5,
    degree: int = 1,
) -> BreakEven:
    """Time a layer's attention as `model` has it, on its device, dense and sparse in turns.

    Args:
        model: what `attention_cost` knows; its `config.attention` builds the layer.
        batch: clips.
        dtype: that training computes in.
        compile: whether training compiles it.
        rounds: timed ones, after one that is not.
        degree: ranks that share the rows: in attention each has so many fewer heads.
    """
    c, tiling = model.config, model.tiling
    device = next(model.parameters()).device
    dim, count = c.dim // degree, c.heads // degree
    layer: Any = c.attention.build(dim, count, tiling).to(device, dtype)
    n, rule = tiling.num_tiles, as_rule(layer.kv_rule, tiling)
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        return x.requires_grad_()

    x = draw(batch, tiling.padded_tokens, dim)
    heads = [draw(batch, count, tiling.padded_tokens, c.head_dim) for _ in range(3)]
    if compile:
        layer.compile()
    tiles = torch.tensor(n, device=device)
    kinds = None, annealed(rule, tiles, n), rule  # those that a schedule takes its way through
    times: list[list[float]] = [[] for _ in kinds]
    for timed in range(rounds + 1):
        for kind, found in zip(kinds, times, strict=True):
            layer.kv_rule = kind
            for y in (x, *heads):
                y.grad = None
            _finish(device)
            start = time.perf_counter()
            out = layer(x, *heads, tiling)
            out.backward(out.detach())
            _finish(device)
            if timed:
                found.append(time.perf_counter() - start)
    dense, every, target = map(statistics.median, times)
    return BreakEven(dense, every, target, 1 - model.top_k / n)


def agree_on_break_even(model: Any, config: Any) -> float:
    """The configured one, or what rank 0 measures for this model: the same on all ranks."""
    sparsity = config.sparsity.break_even
    if sparsity < 0 and dist.get_rank() == 0:
        training = config.training
        dtype = getattr(torch, training.param_dtype)
        options = dict(compile=config.compile, degree=config.parallel.context_parallel_degree)
        found = measure_break_even(model, training.local_batch_size, dtype, **options)
        logger.log(logging.INFO if found.pays else logging.WARNING, str(found))
        sparsity = found.sparsity
    agreed = torch.tensor(sparsity, dtype=torch.float64)
    dist.broadcast(agreed, 0)
    return agreed.item()


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
