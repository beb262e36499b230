"""What the report says, as values: the two clips and their PSNR, the settings, metrics.json."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from models.wan.generate.quality.measure import Quality, decibels, mean_squares


@dataclass(frozen=True)
class Clips:
    """What the trajectories end in: uint8 frames ``[frames, height, width, 3]``, or latent frames
    ``[T, C, H, W]`` where there is no VAE."""

    dense: Tensor
    sparse: Tensor

    @property
    def decoded(self) -> bool:
        return self.dense.dtype == torch.uint8

    @property
    def frame(self) -> str:
        return "frame" if self.decoded else "latent frame"

    @property
    def peak(self) -> float:
        """Of the PSNR: 255, or the range of the dense latent."""
        return 255.0 if self.decoded else (self.dense.max() - self.dense.min()).item()

    @property
    def psnr(self) -> Tensor:
        """Of each frame of the sparse clip to the dense one's, in dB: ``[frames]``."""
        return decibels(self._squares, self.peak)

    @property
    def total(self) -> Tensor:
        """Of all frames together."""
        return decibels(self._squares.mean(), self.peak)

    @cached_property
    def _squares(self) -> Tensor:
        return mean_squares(self.sparse, self.dense)


def settings_of(o: argparse.Namespace, slot: str, shift: float) -> dict[str, str]:
    """What was compared, in words, from the command's options."""
    guidance = "none" if o.guidance == 1 else f"{o.guidance:g}"
    return {
        "checkpoint": str(o.checkpoint),
        "prompt": f"number {o.prompt} of {o.prompt_embeds}",
        "attention": slot,
        "first with dense attention": f"steps: {o.dense_steps}, layers: {o.dense_layers}",
        "size": "x".join(map(str, o.size[0])),
        "sampling": f"{o.steps} steps of {o.sampler}, shift {shift:g}, guidance {guidance}",
        "seed": str(o.seed),
        "computed": f"in {o.dtype} on {o.device}",
    }


def metrics_of(settings: dict[str, str], quality: Quality, clips: Clips) -> dict[str, Any]:
    """For metrics.json: lists by step, by step and layer, by frame; null for an infinite PSNR."""
    total, psnr = _plain(clips.total), _plain(clips.psnr)
    return {
        "settings": settings,
        "noise_levels": _plain(quality.levels),
        "velocity_relative_error": _plain(quality.velocity),
        "attention_relative_error": _plain(quality.attention),
        "tiles_attended": _plain(quality.tiles),
        "queries_kept": _plain(quality.queries),
        "clean_latent_psnr": _plain(quality.clean),
        "clip_psnr": {"of": clips.frame, "peak": clips.peak, "all": total, "each": psnr},
    }


def _plain(x: Tensor) -> Any:
    """Numbers for JSON, which has none for infinity."""
    if x.dim():
        return [_plain(part) for part in x]
    return None if x.item() == math.inf else x.item()
