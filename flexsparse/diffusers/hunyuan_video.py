"""HunyuanVideo: text joins the video, after it, at lengths that differ within a batch."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from torch import Tensor

from flexsparse.choice.text import split
from flexsparse.diffusers.call import Grid, Processor
from flexsparse.diffusers.families import Family, layers_of, register

rotate: Any = apply_rotary_emb  # whose annotations are those of another mode


class HunyuanVideoProcessor(Processor):
    """In place of diffusers' HunyuanVideoAttnProcessor2_0, in blocks of both kinds: in the first
    the text has projections of its own, in the second it shares the video's."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        video, text = hidden_states.shape[1], encoder_hidden_states.shape[1]
        tiling = self.call.tiling(video, text, image_rotary_emb)
        x = tiling.to_tiles(torch.cat((hidden_states, encoder_hidden_states), 1))
        own = attn.add_q_proj is not None
        if own:
            rows, words = split(x, tiling)
            q, k, v = _project(attn, rows, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
            names = ("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k")
            of_text = _project(attn, words, *names)
            q, k, v = (torch.cat(pair, 1) for pair in zip((q, k, v), of_text))
        else:
            q, k, v = _project(attn, x, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
        if image_rotary_emb is not None:
            rotary: Any = self.call.rotary(image_rotary_emb, tiling)
            q, k = (rotate(y, rotary, sequence_dim=1) for y in (q, k))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        lengths = None
        if attention_mask is not None:  # of the text, from its start: the model makes no other
            bare = attention_mask.dtype == torch.bool
            if not bare or attention_mask.shape[1:] != (1, 1, video + text):
                self.refuse(attention_mask=attention_mask)
            lengths = attention_mask[:, 0, 0, video:].sum(-1)
        out = self.attend(attn, x, q, k, v, tiling, lengths)
        out, words = out[:, :video], out[:, video:]
        if getattr(attn, "to_out", None) is not None:
            out = attn.to_out[1](attn.to_out[0](out))
        if getattr(attn, "to_add_out", None) is not None:
            words = attn.to_add_out(words)
        return out, words


def _project(
    attn: Any, x: Tensor, linears: tuple[str, ...], norms: tuple[str, ...]
) -> list[Tensor]:
    """Normed q and k, and v: ``[B, L, H, D]``."""
    found = [getattr(attn, name)(x).unflatten(2, (attn.heads, -1)) for name in linears]
    for i, name in enumerate(norms):
        if (norm := getattr(attn, name)) is not None:
            found[i] = norm(found[i])
    return found


def hunyuan_video_grid(model: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Grid:
    """The latent is ``[B, C, T, H, W]``."""
    t, h, w = hidden_states.shape[2:]
    p = model.config.patch_size
    return t // model.config.patch_size_t, h // p, w // p


_layers = layers_of("transformer_blocks", "single_transformer_blocks", attention="attn")
_processors = {HunyuanVideoAttnProcessor2_0: HunyuanVideoProcessor}
register(Family("HunyuanVideoTransformer3DModel", hunyuan_video_grid, _layers, _processors))
