"""Named sizes. Every one takes changes: `dit_120m(attention=VSA())`, `debug(video=(9, 64, 96))`.

From 60M on, the default video is a 16-channel latent on VSA's pretraining grid of 16 x 32 x 32.
VSA adds its gates to the parameters: 2 * layers * dim^2 when pretraining, half of it with adapt.
"""

from dataclasses import replace
from typing import Any

from models.video_dit.config import VideoDiTConfig


def debug(**changes: Any) -> VideoDiTConfig:
    """For tests: under 1M parameters with any slot; pixels, 300 tokens, ragged tiles."""
    config = VideoDiTConfig(
        channels=3, video=(5, 24, 40), patch=(1, 4, 4), dim=128, heads=4, layers=3, ffn=256
    )
    return replace(config, **changes)


def dit_60m(**changes: Any) -> VideoDiTConfig:
    return replace(VideoDiTConfig(dim=512, heads=8, layers=14, ffn=2048), **changes)


def dit_120m(**changes: Any) -> VideoDiTConfig:
    """VSA's ablation model: 12 layers, 12 heads of 64, ffn 3072."""
    return replace(VideoDiTConfig(dim=768, heads=12, layers=12, ffn=3072), **changes)


def dit_410m(**changes: Any) -> VideoDiTConfig:
    return replace(VideoDiTConfig(dim=1024, heads=16, layers=24, ffn=4096), **changes)


def dit_1b4(**changes: Any) -> VideoDiTConfig:
    """The shape of Wan2.1-1.3B: 30 layers, 12 heads of 128, ffn 8960."""
    return replace(VideoDiTConfig(dim=1536, heads=12, layers=30, ffn=8960), **changes)
