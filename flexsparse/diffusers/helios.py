"""Helios: frames of the history come before the video, the older the smaller."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from diffusers.models.transformers.transformer_helios import (
    HeliosAttnProcessor,
    HeliosTransformer3DModel,
)
from torch import Tensor

from flexsparse.diffusers.call import Grid, Processor, behind, split_heads
from flexsparse.diffusers.families import Family, layers_of, register
from flexsparse.diffusers.wan import as_read, project, rotate_pairs, wan_grid

_call = signature(HeliosTransformer3DModel.forward)


class HeliosProcessor(Processor):
    """In place of diffusers' HeliosAttnProcessor, in self-attention."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Tensor | None = None,
        original_context_length: int | None = None,
    ) -> Tensor:
        given = dict(encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask)
        self.refuse(**given)
        tokens = hidden_states.shape[1]
        tiling = self.call.tiling(tokens, None, rotary_emb)
        first = tiling.text
        x = tiling.to_tiles(behind(hidden_states, first))
        q, k, v = (split_heads(y, attn.heads) for y in project(attn, x))
        if rotary_emb is not None:  # [B, tokens, 2 * D]
            as_pair = lambda x: as_read(*behind(x, first).unsqueeze(1).chunk(2, -1))  # noqa: E731
            rotary = self.call.rotary(rotary_emb, tiling, as_pair)
            q, k = rotate_pairs(q, *rotary), rotate_pairs(k, *rotary)
        if attn.is_amplify_history and original_context_length is not None:
            old = torch.arange(tokens, device=k.device) < tokens - original_context_length
            old = tiling.to_tiles(behind(old[:, None], first, 0)) > 0
            scale = 1 + torch.sigmoid(attn.history_key_scale).view(-1, 1, 1) * (attn.max_scale - 1)
            k = torch.where(old, (k * scale).to(k.dtype), k)
        out = behind(self.attend(attn, x, q, k, v, tiling), -first)
        return attn.to_out[1](attn.to_out[0](out))


def helios_grid(*args: Any, **kwargs: Any) -> Grid:
    """Recent frames come right before the latent's: where they are of its size, which they are not
    in the first stages of a pyramid, the grid goes on over both. The others attend to everything,
    and everything to them, as text does."""
    given = _call.bind(*args, **kwargs).arguments
    model, recent = given["self"], given.get("latents_history_short")
    t, h, w = wan_grid(model, given["hidden_states"])
    if recent is None or given.get("indices_latents_history_short") is None:
        return t, h, w
    before, *size = wan_grid(model, recent)
    return (before + t if size == [h, w] else t), h, w


_processors = {HeliosAttnProcessor: HeliosProcessor}
_layers = layers_of("blocks", attention="attn1")
register(Family("HeliosTransformer3DModel", helios_grid, _layers, _processors))
