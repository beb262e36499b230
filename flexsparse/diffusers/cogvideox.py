"""CogVideoX and ConsisID: text joins the video, before it, always as long as its encoder pads."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import (
    CogVideoXAttnProcessor2_0,
    FusedCogVideoXAttnProcessor2_0,
)
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from flexsparse.diffusers.call import Grid, Processor, split_heads
from flexsparse.diffusers.families import Family, layers_of, register

rotate: Any = apply_rotary_emb  # whose annotations are those of another mode


class CogVideoXProcessor(Processor):
    """In place of diffusers' CogVideoXAttnProcessor2_0."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        self.refuse(attention_mask=attention_mask)
        video, text = hidden_states.shape[1], encoder_hidden_states.shape[1]
        tiling = self.call.tiling(video, text, image_rotary_emb)
        x = tiling.to_tiles(torch.cat((hidden_states, encoder_hidden_states), 1))
        q, k, v = (split_heads(y, attn.heads) for y in self.project(attn, x))
        q = q if attn.norm_q is None else attn.norm_q(q)
        k = k if attn.norm_k is None else attn.norm_k(k)
        if image_rotary_emb is not None:
            rotary: Any = self.call.rotary(image_rotary_emb, tiling)
            q, k = (rotate(y, rotary) for y in (q, k))
        out = self.attend(attn, x, q, k, v, tiling)
        out = attn.to_out[1](attn.to_out[0](out))
        return out[:, :video], out[:, video:]

    def project(self, attn: Any, x: Tensor) -> tuple[Tensor, ...]:
        return attn.to_q(x), attn.to_k(x), attn.to_v(x)


class FusedCogVideoXProcessor(CogVideoXProcessor):
    """In place of FusedCogVideoXAttnProcessor2_0, which ``fuse_qkv_projections`` sets. The layers
    have ``to_q`` and ``to_qkv`` from then on, and the processor alone decides which is used."""

    def project(self, attn: Any, x: Tensor) -> tuple[Tensor, ...]:
        return attn.to_qkv(x).chunk(3, -1)


def cogvideox_grid(model: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Grid:
    """The latent is ``[B, T, C, H, W]``."""
    t, _, h, w = hidden_states.shape[1:]
    p, p_t = model.config.patch_size, model.config.get("patch_size_t") or 1
    return t // p_t, h // p, w // p


_processors = {
    CogVideoXAttnProcessor2_0: CogVideoXProcessor,
    FusedCogVideoXAttnProcessor2_0: FusedCogVideoXProcessor,
}
_layers = layers_of("transformer_blocks", attention="attn1")
register(Family("CogVideoXTransformer3DModel", cogvideox_grid, _layers, _processors))
register(Family("ConsisIDTransformer3DModel", cogvideox_grid, _layers, _processors))
