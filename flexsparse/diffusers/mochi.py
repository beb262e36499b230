"""Mochi: text of another width joins the video, behind it; its rotary table is learned."""

from __future__ import annotations

from inspect import signature
from typing import Any

from diffusers.models.attention_processor import MochiAttnProcessor2_0
from diffusers.models.transformers.transformer_mochi import MochiTransformer3DModel
from torch import Tensor

from flexsparse.diffusers.call import Grid
from flexsparse.diffusers.families import Family, layers_of, of_a_thousand, register
from flexsparse.diffusers.hunyuan_video import HunyuanVideoProcessor, check_text_mask
from flexsparse.diffusers.wan import rotate_pairs

_call = signature(MochiTransformer3DModel.forward)


class MochiProcessor(HunyuanVideoProcessor):
    """In place of diffusers' MochiAttnProcessor2_0. What it makes of a text's padding is another,
    and nothing reads it."""

    def as_pair(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Each head has angles of its own, ``[tokens, H, D / 2]``."""
        cos, sin = (x.transpose(0, 1).repeat_interleave(2, -1) for x in (cos, sin))
        return cos, sin

    @staticmethod
    def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        return rotate_pairs(x, *rotary)

    def text_lengths(self, mask: Tensor, tokens: int, text: int) -> Tensor:
        if mask.shape[1:] != (text,):
            self.refuse(attention_mask=mask)
        return mask.bool().sum(-1)


def mochi_grid(*args: Any, **kwargs: Any) -> Grid:
    """The latent is ``[B, C, T, H, W]``."""
    given = _call.bind(*args, **kwargs).arguments
    check_text_mask(given["encoder_attention_mask"])
    t, h, w = given["hidden_states"].shape[2:]
    p = given["self"].config.patch_size
    return t, h // p, w // p


def mochi_noise(timestep: Tensor) -> Tensor:
    """It goes from 0, noise, to 1,000."""
    return 1 - of_a_thousand(timestep)


_processors = {MochiAttnProcessor2_0: MochiProcessor}
_layers = layers_of("transformer_blocks", attention="attn1")
register(Family("MochiTransformer3DModel", mochi_grid, _layers, _processors, mochi_noise))
