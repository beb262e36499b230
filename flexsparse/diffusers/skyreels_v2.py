"""SkyReels-V2, of Wan's shape; diffusion forcing may give it causal blocks, which are refused."""

from __future__ import annotations

from typing import Any

from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2AttnProcessor
from torch import Tensor

from flexsparse.diffusers.call import Grid
from flexsparse.diffusers.families import Family, layers_of, register
from flexsparse.diffusers.wan import WanProcessor, wan_grid


def skyreels_v2_grid(model: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Grid:
    """The latent is ``[B, C, T, H, W]``."""
    if (frames := model.config.num_frame_per_block) > 1:
        raise ValueError(
            f"SkyReels-V2 has causal blocks of num_frame_per_block={frames} frames, and sparse "
            f"attention sees all frames: call with causal_block_size=1, or restore(model) first"
        )
    return wan_grid(model, hidden_states)


_processors = {SkyReelsV2AttnProcessor: WanProcessor}
_layers = layers_of("blocks", attention="attn1")
register(Family("SkyReelsV2Transformer3DModel", skyreels_v2_grid, _layers, _processors))
