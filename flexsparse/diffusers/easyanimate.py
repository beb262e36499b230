"""EasyAnimate: text joins the video, before it, all of it."""

from __future__ import annotations

from typing import Any

from diffusers.models.transformers.transformer_easyanimate import EasyAnimateAttnProcessor2_0
from torch import Tensor

from flexsparse.diffusers.call import Grid
from flexsparse.diffusers.families import Family, layers_of, register
from flexsparse.diffusers.hunyuan_video import HunyuanVideoProcessor


class EasyAnimateProcessor(HunyuanVideoProcessor):
    """In place of diffusers' EasyAnimateAttnProcessor2_0."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        self.refuse(attention_mask=attention_mask)
        given = hidden_states, encoder_hidden_states, None, image_rotary_emb
        return super().__call__(attn, *given)


def easyanimate_grid(model: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Grid:
    """The latent is ``[B, C, T, H, W]``."""
    t, h, w = hidden_states.shape[2:]
    p = model.config.patch_size
    return t, h // p, w // p


_processors = {EasyAnimateAttnProcessor2_0: EasyAnimateProcessor}
_layers = layers_of("transformer_blocks", attention="attn1")
register(Family("EasyAnimateTransformer3DModel", easyanimate_grid, _layers, _processors))
