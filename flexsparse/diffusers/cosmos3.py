"""Cosmos 3 (Cosmos3OmniTransformer): the video, sound and actions attend to all, text to itself."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_cosmos3 import (
    Cosmos3AttnProcessor,
    Cosmos3OmniTransformer,
)
from torch import Tensor

from flexsparse.diffusers.call import Grid, Processor
from flexsparse.diffusers.families import Family, layers_of, of_a_thousand, register

_call = signature(Cosmos3OmniTransformer.forward)


class Cosmos3Processor(Processor):
    """In place of diffusers' Cosmos3AttnProcessor. Keys and values have fewer heads."""

    def __call__(
        self,
        attn: Any,
        und_seq: Tensor,
        gen_seq: Tensor,
        rotary_emb: tuple[Tensor, Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        of_text, table = rotary_emb[:2], rotary_emb[2:]
        text = len(und_seq)
        tiling = self.call.tiling_beside(len(gen_seq), text, table)
        others = tiling.text - text
        q, k, v = (self.heads(attn, name, und_seq) for name in ("to_q", "to_k", "to_v"))
        q, k = attn.norm_q(q), attn.norm_k(k)
        seen = k if attn.k_norm_und_for_gen is None else attn.k_norm_und_for_gen(k)
        q, k, seen = (turn(y, *of_text) for y in (q, k, seen))
        words = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        x = tiling.to_tiles(F.pad(gen_seq, (0, 0, 0, text)))[None]
        end = tiling.video_rows + others
        names = "add_q_proj", "add_k_proj", "add_v_proj"
        q, k, w = (self.heads(attn, name, x[0, :end]) for name in names)
        rotary = [y[:end] for y in self.call.rotary(table, tiling)]
        q, k = turn(attn.norm_added_q(q), *rotary), turn(attn.norm_added_k(k), *rotary)
        rest = tiling.padded_tokens - end
        q = F.pad(q, (0, 0, 0, rest))  # the text's own output is above
        k, w = (
            torch.cat((y, F.pad(z, (0, 0, 0, rest - text))), -2) for y, z in ((k, seen), (w, v))
        )
        out = self.attend(attn, x, q, k, w, tiling)[0, : len(gen_seq)]
        return attn.to_out(words[0].transpose(0, 1).flatten(1)), attn.to_add_out(out)

    def heads(self, attn: Any, name: str, x: Tensor) -> Tensor:
        """A projection of ``[L, dim]``: ``[1, H, L, D]``."""
        return getattr(attn, name)(x).unflatten(-1, (-1, attn.head_dim)).transpose(0, 1)[None]


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def cosmos3_grid(*args: Any, **kwargs: Any) -> Grid:
    """One video, and its tokens right after the text."""
    given = _call.bind(*args, **kwargs).arguments
    shapes, start = given["vision_token_shapes"], given["und_len"]
    if len(shapes) != 1:
        raise ValueError(f"Cosmos 3 was called with {len(shapes)} videos, {shapes}: give one")
    t, h, w = shapes[0]
    if not torch.compiler.is_compiling():  # which could read no value
        places = given["vision_sequence_indexes"]
        due = torch.arange(start, start + t * h * w, device=places.device)
        if not torch.equal(places, due):
            raise ValueError(
                f"vision_sequence_indexes are not {start} to {start + t * h * w - 1}, as of a "
                f"video {shapes[0]} right after und_len={start} tokens of text: put it there"
            )
    return t, h, w


def of_noisiest(timesteps: Tensor) -> Tensor:
    """The noise level of timesteps of tokens, of which those of conditions have less."""
    return of_a_thousand(timesteps).amax().reshape(1)


_processors = {Cosmos3AttnProcessor: Cosmos3Processor}
_layers = layers_of("layers", attention="self_attn")
_names: Any = dict(
    query="add_q_proj",
    heads="num_attention_heads",
    timestep="vision_timesteps",
    noise=of_noisiest,
    video="vision_tokens",
    output=1,
)
register(Family("Cosmos3OmniTransformer", cosmos3_grid, _layers, _processors, **_names))
