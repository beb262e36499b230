"""Flow matching: the training loss, and the sampler that integrates what it taught.

A clip is carried to noise along a straight line, x_t = (1 - t) * x0 + t * noise, so that 0 is data
and 1 is noise. The model predicts the line's velocity, noise - x0 (Lipman et al., arXiv 2210.02747;
Liu et al., arXiv 2209.03003).
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A model: (x_t [B, C, T, H, W], t [B], context [B, N, D]) -> velocity [B, C, T, H, W]."""


@dataclass(kw_only=True, slots=True)
class FlowConfig:
    shift: float = 1.0
    """Bends times towards noise: shift * t / (1 + (shift - 1) * t). Large grids want 3 to 5."""

    least: float = 0.0
    """Train and validate on times from here on: what no sampler visits need not be learnt."""

    most: float = 1.0
    """Train and validate on times up to here, as for a model of low noise beside one of high."""

    def __post_init__(self) -> None:
        if not 0 <= self.least < self.most <= 1:
            raise ValueError(
                f"flow.least is {self.least} and flow.most {self.most}; give times, "
                f"0 <= least < most <= 1"
            )
        if self.shift <= 0:
            raise ValueError(f"flow.shift is {self.shift}; give a number above 0, 1 for no shift")


def shifted(t: Tensor, shift: float, least: float = 0.0, most: float = 1.0) -> Tensor:
    """Times in [0, 1] bent towards 1 (noise), with 0 and 1 where they are, and then taken, evenly,
    from there to `least` and `most`."""
    return least + (most - least) * shift * t / (1 + (shift - 1) * t)


def unshifted(time: float, shift: float, least: float = 0.0, most: float = 1.0) -> float:
    """What `shifted` makes a time of, from 0 to 1; the end that is nearer where none is."""
    along = min(max((time - least) / (most - least), 0.0), 1.0)
    return along / (shift - (shift - 1) * along)


def keyed_generator(device: torch.device, *key: int | str) -> torch.Generator:
    """A generator that depends on the key alone: a resumed run draws what the first would have."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def draw(
    clips: Tensor,
    *,
    seed: int,
    step: int,
    positions: Sequence[int],
    shift: float = 1.0,
    least: float = 0.0,
    most: float = 1.0,
    levels: Sequence[float] = (),
) -> tuple[Tensor, Tensor]:
    """Noise and times for the clips at these positions of a step's global batch.

    Each clip has a generator of its own, keyed by (seed, step, position), so that the same global
    batch meets the same noise however it is split over ranks and accumulation steps.

    Where the model attends otherwise from some noise `levels` on, all times of a step lie between
    two of them, drawn for the step as often as single times would: a call of the model has one
    density, and ranks take equally long.

    Returns noise like `clips` [B, C, T, H, W], and t [B] in [least, most), fp32.
    """
    noise, times = torch.empty_like(clips), []
    for i, position in enumerate(positions):
        generator = keyed_generator(clips.device, "train", seed, step, position)
        times.append(torch.rand((), device=clips.device, generator=generator))
        noise[i].normal_(generator=generator)
    if not levels:
        return noise, shifted(torch.stack(times), shift, least, most)
    low, high = _span_of(step, levels, seed, shift, least, most)
    u, v = (unshifted(time, shift, least, most) for time in (low, high))
    t = shifted(u + (v - u) * torch.stack(times), shift, least, most)
    return noise, t.clamp(_fp32(low, up=True), _fp32(high, up=False))


def _span_of(
    step: int, levels: Sequence[float], seed: int, shift: float, least: float, most: float
) -> tuple[float, float]:
    """The two of these levels, or ends of all times, between which a step's times lie."""
    edges = [least, *sorted(level for level in levels if least < level < most), most]
    generator = keyed_generator(torch.device("cpu"), "band", seed, step)
    drawn = torch.rand((), generator=generator, dtype=torch.float64).item()
    return next(
        pair
        for pair in pairwise(edges)
        if pair[1] == most or drawn < unshifted(pair[1], shift, least, most)
    )


def _fp32(time: float, up: bool) -> float:
    """The least fp32 number from a time on, or the greatest below it."""
    x = torch.tensor(time, dtype=torch.float32)
    if up:
        return (x if x.item() >= time else x.nextafter(torch.tensor(math.inf))).item()
    return (x if x.item() < time else x.nextafter(torch.tensor(-math.inf))).item()


def flow_loss(model: Velocity, x0: Tensor, context: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Mean squared error of the predicted velocity, for each clip: [B], fp32."""
    s = t.view(-1, 1, 1, 1, 1)
    predicted = model((1 - s) * x0 + s * noise, t, context)
    return (predicted.float() - (noise - x0)).square().mean((1, 2, 3, 4))


@torch.no_grad()
def sample(
    model: Velocity,
    context: Tensor,
    shape: Sequence[int],
    *,
    steps: int = 20,
    seed: int = 0,
    shift: float = 1.0,
) -> Tensor:
    """Clips for `context` [B, N, D], by Euler's method in `steps` steps from noise to data.

    Args:
        shape: (C, T, H, W) of one clip.
        seed: the noise of clip i is keyed by (seed, i): the same for every model and batch size.
        shift: as in training.

    Returns:
        [B, C, T, H, W] fp32, about [-1, 1], on context's device.
    """
    device = context.device
    generators = [keyed_generator(device, "sample", seed, i) for i in range(len(context))]
    x = torch.stack([torch.randn(*shape, device=device, generator=g) for g in generators])
    times = shifted(torch.linspace(1, 0, steps + 1, device=device), shift)
    for now, after in pairwise(times):
        x = x + (after - now) * model(x, now.expand(len(x)), context).float()
    return x
