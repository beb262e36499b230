"""Two trajectories from the same noise, dense and sparse, and how far they are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.wan.embed import wide
from models.wan.generate.sampling import Sampler, dense, guided_velocity, schedule
from models.wan.model import WanModel


@dataclass(frozen=True)
class Quality:
    """How sparse attention differs from dense, fp64 on the CPU but for the latents.

    Attributes:
        levels: of noise at each step, ``[steps]``.
        velocity: relative error ``||sparse - dense|| / ||dense||`` of the (guided) velocity, both
            for the dense trajectory's latent, ``[steps]``.
        attention: the same of each self-attention's output, before its output projection, both for
            what the dense pass came to it with, over both texts, ``[steps, layers]``.
        tiles, queries: the share of the key tiles that query tiles attend to, and of the queries
            that stay, ``[steps, layers]``.
        clean: PSNR in dB of the clean latent that the sparse trajectory predicts, ``x - t * v``, to
            the dense one's, whose range is the peak; inf where they are equal, ``[steps]``.
        dense, sparse: the latents at the end, ``[1, C, T, H, W]``.
    """

    levels: Tensor
    velocity: Tensor
    attention: Tensor
    tiles: Tensor
    queries: Tensor
    clean: Tensor
    dense: Tensor
    sparse: Tensor


@torch.no_grad()
def compare(
    model: WanModel,
    noise: Tensor,
    text: Tensor,
    negative: Tensor | None,
    *,
    steps: int,
    sampler: Sampler,
    shift: float,
    guidance: float,
    dense_steps: int = 0,
    dense_layers: int = 0,
    each: Callable[[int], Any] = lambda step: None,
) -> Quality:
    """Sample twice, step by step together: with all layers dense, and as the model is.

    Dense is a slot whose `kv_rule` is None: of a checkpoint that has VSA's gates, the coarse stage
    is on both sides.

    Nothing is kept from step to step but the two latents and numbers; within a step, no more than
    one layer's sparse output beside the dense one.

    Args:
        model: with slots that have `kv_rule` and `choose`, not compiled: hooks see into it.
        each: called after each step with its number.
        noise and all others: as of :func:`models.wan.generate.sampling.sample`.

    Raises:
        ValueError: a velocity that is not finite.
    """
    first, second = (schedule(sampler, steps, shift, noise.device) for _ in range(2))
    everything = len(model.layers)
    x = y = noise
    rows: list[tuple[Tensor, ...]] = []

    def velocity(latent: Tensor, t: Tensor, layers: int) -> Tensor:
        with dense(model, layers):
            return guided_velocity(model, latent, t, text, negative, guidance)

    for number, t in enumerate(first.timesteps):
        layers = everything if number < dense_steps else dense_layers
        with _beside(model, layers) as found:
            v = velocity(x, t, everything)
        v_sparse = v if layers == everything else velocity(x, t, layers)
        # the trajectories part with the first sparse step
        w = v_sparse if number <= dense_steps else velocity(y, t, layers)
        level = first.sigmas[number].to(x.device)
        clean = x - level * v
        apart = mean_squares((y - level * w)[None], clean[None])
        cells = [(0.0, 1.0, 1.0)] * layers + [one.row() for one in found]
        rows.append(
            (
                level.cpu(),
                relative(squares(v_sparse, v)),
                torch.tensor(cells, dtype=torch.float64),
                decibels(apart, (clean.max() - clean.min()).item())[0],
            )
        )
        x = first.step(v, t, x, return_dict=False)[0]
        y = second.step(w, t, y, return_dict=False)[0]
        each(number)
    levels, error, of_layers, psnr = (torch.stack(column).double() for column in zip(*rows))
    attention, tiles, queries = of_layers.unbind(-1)
    return Quality(levels, error, attention, tiles, queries, psnr, x, y)


class _Beside:
    """A hook on a slot that attends densely: what it would do by `rule`, for the same input."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.squares = torch.zeros(2, dtype=torch.float64)
        self.shares: list[tuple[float, float]] = []

    def __call__(self, slot: Any, args: Any, out: Tensor) -> None:
        _, q, k, _, tiling = args
        slot.kv_rule = self.rule
        try:
            sparse, choice = slot.forward(*args), slot.choose(q, k, tiling)
        finally:
            slot.kv_rule = None
        self.squares += squares(sparse, out)
        tile_map, kept = choice.tile_map, choice.kept
        queries = kept[..., 0].numel() * tiling.tokens
        self.shares.append((int(tile_map.sum()) / tile_map.numel(), int(kept.sum()) / queries))

    def row(self) -> tuple[float, float, float]:
        """Relative error, share of the tiles, share of the queries, over all calls."""
        tiles, queries = torch.tensor(self.shares, dtype=torch.float64).mean(0).tolist()
        return relative(self.squares).item(), tiles, queries


@contextmanager
def _beside(model: WanModel, skipped: int) -> Iterator[list[_Beside]]:
    blocks = list(cast(nn.ModuleDict, model.layers).values())[skipped:]
    slots = [cast(Any, block).self_attn.slot for block in blocks]
    found = [_Beside(slot.kv_rule) for slot in slots]
    hooks = [slot.register_forward_hook(one) for slot, one in zip(slots, found)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def squares(found: Tensor, wanted: Tensor) -> Tensor:
    """Sums of squares of the difference, and of `wanted`: ``[2]``, fp64 on the CPU."""
    parts = wide(found) - wide(wanted), wide(wanted)
    norms = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in parts]
    return torch.stack(norms).square().cpu()


def relative(squares: Tensor) -> Tensor:
    """The relative error that sums of squares ``[2]`` make; 0 where there is no difference."""
    error, norm = squares.sqrt()
    return torch.where(error == 0, error, error / norm)


def mean_squares(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squares of the difference of ``[n, ...]``, one by one: ``[n]``, fp64 on the CPU."""
    pairs = zip(found, wanted)
    return torch.stack([(a.double() - b.double()).square().mean().cpu() for a, b in pairs])


def decibels(mean_squares: Tensor, peak: float) -> Tensor:
    """PSNR of mean squares, ``10 log10(peak^2 / mean_squares)``; inf where they are 0.

    >>> decibels(torch.tensor([1.0, 0.0]), peak=10.0)
    tensor([20., inf])
    """
    found = 10 * (peak**2 / mean_squares).log10()
    return torch.where(mean_squares == 0, torch.inf, found)
