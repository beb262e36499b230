"""Clips of the experiments: pixels brought to the mean and spread that PixelDiT expects.

A dark film in [-1, 1] has little contrast, and most of what there is to learn drowns in the noise;
so that a few hundred steps teach something, pixels are normalised, as the latents of a VAE are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from train.data import VideoDataLoader
from train.data.batch import Batch, Sample
from train.demo.model import SPREAD


class NormalisedLoader(VideoDataLoader):
    """As VideoDataLoader, with pixels of mean 0 and of standard deviation SPREAD, about."""

    @dataclass(kw_only=True, slots=True)
    class Config(VideoDataLoader.Config):
        mean: float = 0.0
        """Of the source's pixels in [-1, 1], to take off."""
        std: float = SPREAD
        """Of the same, to be brought to SPREAD."""

        def build(self, **where: Any) -> NormalisedLoader:
            return NormalisedLoader(self, **where)

    def collate(self, clips: list[Sample]) -> Batch:
        batch = super().collate(clips)
        batch["video"].sub_(self.config.mean).mul_(SPREAD / self.config.std)
        return batch
