"""Named sizes. Every one takes changes: `wan_1_3b(attention=VSA(adapt=True))`.

The latent's default size is that of 81 frames at 480 x 832, Wan's own: 21 x 30 x 52 tokens.
"""

from dataclasses import replace
from typing import Any

from models.wan.config import WanConfig


def wan_1_3b(**changes: Any) -> WanConfig:
    """Wan2.1-T2V-1.3B: heads of 128, as in all of Wan's models."""
    return replace(WanConfig(dim=1536, heads=12, layers=30, ffn=8960), **changes)


def wan_14b(**changes: Any) -> WanConfig:
    """Wan2.1-T2V-14B."""
    return replace(WanConfig(dim=5120, heads=40, layers=40, ffn=13824), **changes)


def wan_i2v_14b(**changes: Any) -> WanConfig:
    """Wan2.1-I2V-14B, at 480p or 720p; with pos_embed_seq_len=514 Wan2.1-FLF2V-14B."""
    return replace(wan_14b(in_channels=36, image_dim=1280), **changes)


def debug(**changes: Any) -> WanConfig:
    """For tests: under 1M parameters with any slot; 180 tokens, ragged tiles."""
    config = WanConfig(
        dim=64, heads=2, layers=2, ffn=128, text_dim=32, freq_dim=64, video=(3, 12, 20)
    )
    return replace(config, **changes)
