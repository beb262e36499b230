"""What the report says, as values: how attention differs, the two clips, metrics.json."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from flexsparse.diffusers.generate.compare.observe import Step, relative


@dataclass(frozen=True)
class Quality:
    """How sparse attention differs from dense, fp64 on the CPU, by step: a step is a noise level.

    Attributes:
        levels: of noise, ``[steps]``.
        output: relative error ``||sparse - dense|| / ||dense||`` of the model's output, both for
            the dense clip's latent, over its texts, ``[steps]``.
        attention: the same of each self-attention's output, both for what the dense pass came to
            it with, ``[steps, layers]``.
        tiles, queries, held: the share of the key tiles that query tiles attend to, of the queries
            that stay, and of dense attention's weight that those tiles hold, ``[steps, layers]``.
        latents: PSNR in dB of what the model is given at each step of the sparse clip, to the dense
            one's, whose range is the peak; inf where they are equal, ``[steps]``.
    """

    levels: Tensor
    output: Tensor
    attention: Tensor
    tiles: Tensor
    queries: Tensor
    held: Tensor
    latents: Tensor

    @classmethod
    def of(cls, dense: list[Step], sparse: list[Step], layers: int) -> Quality:
        """From the steps of both clips, of which the dense one was observed."""
        cells = torch.stack([step.row(layers) for step in dense])
        apart = [
            decibels(mean_squares(b.latent[None], a.latent[None]), _range(a.latent))[0]
            for a, b in zip(dense, sparse, strict=True)
        ]
        levels = torch.tensor([step.level for step in dense], dtype=torch.float64)
        output = torch.stack([relative(step.output) for step in dense])
        attention, tiles, queries, held = cells.unbind(-1)
        return cls(levels, output, attention, tiles, queries, held, torch.stack(apart))


@dataclass(frozen=True)
class Clips:
    """Two clips: uint8 frames ``[frames, height, width, 3]``, or latents ``[1, ...]``."""

    dense: Tensor
    sparse: Tensor

    @classmethod
    def of(cls, dense: Tensor, sparse: Tensor) -> Clips:
        """Of frames, or of the latent of one clip, which has no frames of its own."""
        if dense.dtype == torch.uint8:
            return cls(dense, sparse)
        return cls(dense[None], sparse[None])

    @property
    def decoded(self) -> bool:
        return self.dense.dtype == torch.uint8

    @property
    def peak(self) -> float:
        """Of the PSNR: 255, or the range of the dense latent."""
        return 255.0 if self.decoded else _range(self.dense)

    @property
    def psnr(self) -> Tensor:
        """Of each frame of the sparse clip to the dense one's, in dB: ``[frames]``."""
        return decibels(self._squares, self.peak)

    @property
    def total(self) -> Tensor:
        """Of all frames together."""
        return decibels(self._squares.mean(), self.peak)

    @property
    def error(self) -> float:
        """Root mean square of the difference, the peak being 1."""
        return self._squares.mean().sqrt().item() / self.peak

    @cached_property
    def _squares(self) -> Tensor:
        return mean_squares(self.sparse, self.dense)


def metrics_of(settings: dict[str, str], quality: Quality, clips: Clips) -> dict[str, Any]:
    """For metrics.json: lists by step, by step and layer, by frame; null for an infinite PSNR."""
    of = "frame" if clips.decoded else "latent"
    return {
        "settings": settings,
        "noise_levels": _plain(quality.levels),
        "output_relative_error": _plain(quality.output),
        "attention_relative_error": _plain(quality.attention),
        "tiles_attended": _plain(quality.tiles),
        "queries_kept": _plain(quality.queries),
        "dense_weight_held": _plain(quality.held),
        "latents_psnr": _plain(quality.latents),
        "clip_psnr": {
            "of": of,
            "peak": clips.peak,
            "all": _plain(clips.total),
            "each": _plain(clips.psnr),
        },
        "clip_error": clips.error,
    }


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


def decibel_text(value: Tensor | float) -> str:
    """Three digits and the unit, or that there is no difference."""
    value = float(value)
    return "infinite: equal" if value == math.inf else f"{value:.3g} dB"


def _range(x: Tensor) -> float:
    return (x.max() - x.min()).item()


def _plain(x: Tensor) -> Any:
    """Numbers for JSON, which has none for infinity."""
    if x.dim():
        return [_plain(part) for part in x]
    return None if x.item() == math.inf else x.item()
