"""LTX-Video: tokens come packed, and the call says of which grid."""

from __future__ import annotations

from typing import Any

from diffusers.models.transformers.transformer_ltx import LTXVideoAttnProcessor, apply_rotary_emb
from torch import Tensor

from flexsparse.diffusers.call import Grid, Processor, split_heads
from flexsparse.diffusers.families import Family, layers_of, register


class LTXProcessor(Processor):
    """In place of diffusers' LTXVideoAttnProcessor, in self-attention."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        given = dict(encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask)
        self.refuse(**given)
        tiling = self.call.tiling(hidden_states.shape[1], rotary=image_rotary_emb)
        x = tiling.to_tiles(hidden_states)
        q, k, v = attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(x)), attn.to_v(x)
        if image_rotary_emb is not None:
            rotary: Any = self.call.rotary(image_rotary_emb, tiling)
            q, k = apply_rotary_emb(q, rotary), apply_rotary_emb(k, rotary)
        q, k, v = (split_heads(y, attn.heads) for y in (q, k, v))
        out = self.attend(attn, x, q, k, v, tiling)
        return attn.to_out[1](attn.to_out[0](out))


def ltx_grid(
    model: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Any = None,
    timestep: Any = None,
    encoder_attention_mask: Any = None,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    *args: Any,
    **kwargs: Any,
) -> Grid:
    """Sizes of the latent in tokens, as LTXPipeline gives them."""
    if num_frames is None or height is None or width is None:
        raise ValueError(
            "LTX was called without num_frames, height and width, so that its tokens have no "
            "grid: give them, as LTXPipeline and LTXImageToVideoPipeline do; "
            "LTXConditionPipeline's tokens cannot be tiled"
        )
    return num_frames, height, width


_processors = {LTXVideoAttnProcessor: LTXProcessor}
_layers = layers_of("transformer_blocks", attention="attn1")
register(Family("LTXVideoTransformer3DModel", ltx_grid, _layers, _processors))
