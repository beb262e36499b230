"""Framepack (HunyuanVideo): frames of the history come before the video, the older the smaller."""

from __future__ import annotations

from inspect import signature
from typing import Any

from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from diffusers.models.transformers.transformer_hunyuan_video_framepack import (
    HunyuanVideoFramepackTransformer3DModel,
)

from flexsparse.diffusers.call import Grid
from flexsparse.diffusers.families import Family, register
from flexsparse.diffusers.hunyuan_video import HunyuanVideoProcessor, hunyuan_video_grid, layers
from flexsparse.tiling import VideoTiling

_call = signature(HunyuanVideoFramepackTransformer3DModel.forward)


class FramepackProcessor(HunyuanVideoProcessor):
    """In place of diffusers' HunyuanVideoAttnProcessor2_0, where history comes before the grid."""

    def tiling(self, tokens: int, text: int, rotary: Any) -> VideoTiling:
        return self.call.tiling_beside(tokens, text, rotary)


def framepack_grid(*args: Any, **kwargs: Any) -> Grid:
    """The clean frames right before the latent's are of its size: the grid goes on over both.
    Those at half and a quarter of it attend to everything, and everything to them, as text does."""
    given = _call.bind(*args, **kwargs).arguments
    model, clean = given["self"], given.get("latents_clean")
    t, h, w = hunyuan_video_grid(model, given["hidden_states"])
    if clean is None:
        return t, h, w
    if (clean.shape[3] // 2, clean.shape[4] // 2) != (h, w):
        raise ValueError(
            f"latents_clean {list(clean.shape)} and hidden_states "
            f"{list(given['hidden_states'].shape)} differ in size: give frames of one"
        )
    return clean.shape[2] + t, h, w


_processors = {HunyuanVideoAttnProcessor2_0: FramepackProcessor}
register(Family("HunyuanVideoFramepackTransformer3DModel", framepack_grid, layers, _processors))
