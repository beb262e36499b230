"""Sampling a latent: flow matching by diffusers' schedulers, with classifier-free guidance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.wan.generate.clock import Clock
from models.wan.generate.sizes import Size
from models.wan.model import WanModel

Sampler = Literal["unipc", "euler"]


def schedule(sampler: Sampler, steps: int, shift: float, device: torch.device) -> Any:
    """diffusers' scheduler with its `steps` noise levels, shifted: Wan has 3 at 480p, 5 at 720p."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
        FlowMatchEulerDiscreteScheduler,
    )
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    if sampler == "euler":
        scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
    else:
        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
        )
    scheduler.set_timesteps(steps, device=device)
    return scheduler


def first_step(scheduler: Any, strength: float) -> int:
    """The first step whose noise is at most `strength`."""
    levels = scheduler.sigmas[:-1]
    return min(int((levels > strength).sum()), len(levels) - 1)


@torch.no_grad()
def sample(
    model: WanModel,
    noise: Tensor,
    text: Tensor,
    negative: Tensor | None,
    *,
    steps: int = 50,
    sampler: Sampler = "unipc",
    shift: float = 5.0,
    guidance: float = 5.0,
    dense_steps: int = 0,
    dense_layers: int = 0,
    start: Tensor | None = None,
    strength: float = 1.0,
    each: Callable[[int, int], Any] = lambda step, steps: None,
) -> Tensor:
    """A latent ``[1, C, T, H, W]`` in fp32, from noise of that size.

    Args:
        noise: fp32, standard normal, of any size that the model's patches divide.
        text, negative: ``[1, 512, text_dim]``; without `negative` there is no guidance.
        steps, sampler, shift: of the schedule.
        guidance: ``velocity = negative + guidance * (positive - negative)``.
        dense_steps, dense_layers: so many first steps, and first layers, attend densely.
        start: a latent to go on from, of another size if need be, in place of pure noise: it is
            resized, noised to `strength`, and the steps from there on are taken.
        each: called before each step with its number and theirs.
    """
    scheduler = schedule(sampler, steps, shift, noise.device)
    begin, x = 0, noise
    if start is not None:
        begin = first_step(scheduler, strength)
        level = scheduler.sigmas[begin].to(noise.device, noise.dtype)
        x = (1 - level) * resize(start, noise.shape[2:]) + level * noise
        scheduler.set_begin_index(begin)
    times = scheduler.timesteps[begin:]
    for number, t in enumerate(times):
        each(number, len(times))
        layers = len(model.layers) if begin + number < dense_steps else dense_layers
        with dense(model, layers):
            velocity = guided_velocity(model, x, t, text, negative, guidance)
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    return x


def guided_velocity(
    model: WanModel, x: Tensor, t: Tensor, text: Tensor, negative: Tensor | None, guidance: float
) -> Tensor:
    """``negative + guidance * (positive - negative)`` at a scheduler's time, 0 to 1000; without a
    negative text the velocity as it is.

    Raises:
        ValueError: a velocity that is not finite, which would end as a black clip.
    """
    time = (t.float() / 1000).expand(1).to(x.device)
    velocity = model(x, time, text)
    if negative is not None:
        other = model(x, time, negative)
        velocity = other + guidance * (velocity - other)
    # the one value that is read back, once in a step of seconds: the steps after it would be lost
    if not velocity.isfinite().all():
        raise ValueError(_not_finite(model, t))
    return velocity


def _not_finite(model: WanModel, t: Tensor) -> str:
    bad = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    weights = f", nor are {len(bad)} of its weights, {bad[0]} first" if bad else ""
    dtype = model.patch_embedding.weight.dtype
    advice = "give --dtype bfloat16 or float32"
    return (
        f"at noise level {float(t) / 1000:.3g} the model's velocity is not finite in "
        f"{str(dtype).removeprefix('torch.')}{weights}: "
        f"{advice if dtype == torch.float16 else 'is the checkpoint whole?'}"
    )


def draw_noise(model: WanModel, size: Size, seed: int) -> Tensor:
    """Of a latent of this size: the same numbers on every device, fp32, on the model's."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, model.config.out_channels, *size, generator=generator)
    return noise.to(next(model.parameters()).device)


def resize(latent: Tensor, size: tuple[int, ...]) -> Tensor:
    """``[B, C, T, H, W]`` to another size, by trilinear interpolation."""
    if latent.shape[2:] == size:
        return latent
    return F.interpolate(latent, size=size, mode="trilinear", align_corners=False)


@contextmanager
def dense(model: WanModel, layers: int) -> Iterator[None]:
    """Within it, the first `layers` layers attend densely, whatever their slot."""
    slots = [cast(Any, block).self_attn.slot for block in model.layers.values()]
    sparse = [slot for slot in slots[:layers] if hasattr(slot, "kv_rule")]
    rules = [slot.kv_rule for slot in sparse]
    try:
        for slot in sparse:
            slot.kv_rule = None
        yield
    finally:
        for slot, rule in zip(sparse, rules):
            slot.kv_rule = rule


def compile_blocks(model: WanModel, **options: Any) -> None:
    """Compile each block: one program for all of them and for each size of the latent, kept when
    another size comes in between. `options` are torch.compile's."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for block in cast(nn.ModuleDict, model.layers).values():
        block.compile(fullgraph=True, dynamic=False, **options)


@torch.no_grad()
def attention_alone(model: WanModel, size: Size, clock: Clock, name: str, calls: int) -> None:
    """Add to a clock what `calls` of a layer's attention take, compiled by itself: hooks cannot
    look into compiled blocks. The median of three calls on random numbers, after one that is not
    timed."""
    layer: Any = model.layers["0"]
    weight: Tensor = layer.self_attn.q.weight
    tiling = model.config.attention.tiling(model.config.grid_of(size))
    rows = math.prod(model.config.grid_of(size)) if tiling is None else tiling.padded_tokens
    like: Any = dict(device=weight.device, dtype=weight.dtype)
    x = torch.randn(1, rows, model.config.dim, **like)
    heads = model.config.heads, model.config.head_dim
    q, k, v = (torch.randn(1, rows, *heads, **like).transpose(1, 2) for _ in range(3))
    slot = torch.compile(layer.self_attn.slot, fullgraph=True, dynamic=False)
    slot(x, q, k, v, tiling)
    times = []
    for _ in range(3):
        one = Clock(weight.device)
        with one.part("call"):
            slot(x, q, k, v, tiling)
        times.append(one.seconds["call"])
    clock.seconds[name] += calls * statistics.median(times)
