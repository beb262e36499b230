"""Allegro: self-attention over the video; a rotary table for each axis, and each token's places."""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_processor import AllegroAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb_allegro
from torch import Tensor

from flexsparse.diffusers.call import Processor, split_heads
from flexsparse.diffusers.families import Family, layers_of, register
from flexsparse.diffusers.hunyuan_video import hunyuan_video_grid


class AllegroProcessor(Processor):
    """In place of diffusers' AllegroAttnProcessor2_0, in self-attention."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        image_rotary_emb: tuple[Any, tuple[Tensor, ...]] | None = None,
    ) -> Tensor:
        given = dict(encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask)
        self.refuse(**given, temb=temb)
        tables, places = (None, None) if image_rotary_emb is None else image_rotary_emb
        tiling = self.call.tiling(hidden_states.shape[1], rotary=places)
        x = tiling.to_tiles(hidden_states)
        q, k, v = (split_heads(y, attn.heads) for y in (attn.to_q(x), attn.to_k(x), attn.to_v(x)))
        if places is not None:  # [1, tokens] along T, H and W
            tiled = [y.mT for y in self.call.rotary(places, tiling, dim=-1)]
            q, k = (apply_rotary_emb_allegro(y, tables, tiled) for y in (q, k))
        out = self.attend(attn, x, q, k, v, tiling)
        return attn.to_out[1](attn.to_out[0](out))


_processors = {AllegroAttnProcessor2_0: AllegroProcessor}
_layers = layers_of("transformer_blocks", attention="attn1")
register(Family("AllegroTransformer3DModel", hunyuan_video_grid, _layers, _processors))
