"""Motif-Video: pictures and text join the video, behind it."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from typing import Any

from diffusers.models.transformers.transformer_motif_video import (
    MotifVideoAttnProcessor2_0,
    MotifVideoTransformer3DModel,
)

from flexsparse.diffusers.call import Grid
from flexsparse.diffusers.families import Family, register
from flexsparse.diffusers.hunyuan_video import (
    HunyuanVideoProcessor,
    check_text_mask,
    hunyuan_video_grid,
    layers,
)

_call = signature(MotifVideoTransformer3DModel.forward)


def motif_video_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """All but those of the decoder, the last blocks: beside the video's tokens they have as many
    of the encoder's, of no place in the grid, and stay dense."""
    found = list(layers(model))
    yield from found[: len(found) - model.config.num_decoder_layers]


def motif_video_grid(*args: Any, **kwargs: Any) -> Grid:
    given = _call.bind(*args, **kwargs).arguments
    check_text_mask(given.get("encoder_attention_mask"))
    return hunyuan_video_grid(given["self"], given["hidden_states"])


_processors = {MotifVideoAttnProcessor2_0: HunyuanVideoProcessor}
register(Family("MotifVideoTransformer3DModel", motif_video_grid, motif_video_layers, _processors))
