"""MiniMax-H3: text, conditions, audio and video packed in one sequence, which each call describes.

Tiles are made of the video that is generated. All else, references and keyframes too, attends to
everything and is attended by all, as text does. VSA's coarse stage has tiles of it, too, of text,
conditions and audio each, as FastVideo's sparse checkpoints of this model were trained with.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.models.transformers.transformer_minimax_h3 import (
    MiniMaxH3AttnProcessor,
    _apply_rotary_emb,
)
from torch import Tensor

from flexsparse.diffusers.call import Grid, Packed, Processor, to_tiles
from flexsparse.diffusers.families import Family, layers_of, register


class MiniMaxH3Processor(Processor):
    """In place of diffusers' MiniMaxH3AttnProcessor, in the blocks; the text's refiner stays."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        self.refuse(attention_mask=attention_mask)
        tiling = self.call.tiling(hidden_states.shape[1], None, rotary_emb)
        order = self.call.order(tiling, rotary_emb)
        x = to_tiles(hidden_states, tiling, order)
        if attn.fused_projections:
            q, k, v = attn.to_qkv(x).chunk(3, -1)
        else:
            q, k, v = attn.to_q(x), attn.to_k(x), attn.to_v(x)
        q, k, v = (y.unflatten(-1, (attn.heads, -1)) for y in (q, k, v))
        q, k = attn.norm_q(q), attn.norm_k(k)
        if rotary_emb is not None:
            rotary = self.call.rotary(rotary_emb, tiling)
            q, k = _apply_rotary_emb(q, *rotary), _apply_rotary_emb(k, *rotary)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        out = self.attend(attn, x, q, k, v, tiling, order=order)
        return attn.to_out[1](attn.to_out[0](out))


def minimax_h3_grid(
    model: Any,
    hidden_states: Tensor,
    audio_hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    timestep: Tensor,
    timestep_indices: Tensor,
    token_tags: Tensor,
    position_ids: Tensor,
    video_indices: Tensor,
    audio_indices: Tensor,
    text_indices: Tensor,
    attention_kwargs: dict[str, Any] | None = None,
    *args: Any,
    **kwargs: Any,
) -> Packed:
    """What the last of ``video_indices`` at one timestep are, those of conditions coming first: a
    grid by their position ids, which are read from the device once in a call.

    ``attention_kwargs=dict(grid=(T, H, W))`` says so without reading, which torch.compile with
    ``fullgraph=True`` wants, of a video whose rows come in raster order.
    """
    given = (attention_kwargs or {}).get("grid")
    if given is not None and torch.compiler.is_compiling():
        tokens = math.prod(given)
        grid, conditions, video = given, video_indices[:-tokens], video_indices[-tokens:]
    else:
        grid, conditions, video = _video_read(position_ids, video_indices, timestep_indices)
        if given is not None and tuple(given) != grid:
            raise ValueError(
                f"attention_kwargs has grid={tuple(given)}, but the position ids of the video are "
                f"those of {grid}: give that, or leave it out"
            )
    others = text_indices, conditions, audio_indices
    parts = tuple(len(rows) for rows in others if len(rows))
    return Packed(grid, torch.cat((video, *others)), parts)


def _video(
    position_ids: Tensor, video_indices: Tensor, timestep_indices: Tensor
) -> tuple[Grid, Tensor, Tensor]:
    """The grid of the video that is generated, the places of conditions, int64 ``[m]``, and its
    own, in raster order, int64 ``[n]``."""
    rows, levels = video_indices.cpu(), timestep_indices.cpu()
    level, positions = levels[rows].diff(), position_ids.cpu()
    # in the last steps conditions may have the video's timestep: audio lies between them
    for gaps in (False, True):
        ends = (level != 0) | (rows.diff() != 1) if gaps else level != 0
        start = int(ends.nonzero()[-1]) + 1 if ends.any() else 0
        video = rows[start:]
        axes = [x.unique(return_inverse=True) for x in positions[video].unbind(-1)]
        (t, of_t), (h, of_h), (w, of_w) = axes
        grid = len(t), len(h), len(w)
        cell, order = ((of_t * len(h) + of_h) * len(w) + of_w).sort()
        keyframes = not start and (video.diff() > 0).all() and (of_t.diff() < 0).any()
        tiled = len(video) > 0 and torch.equal(cell, torch.arange(math.prod(grid)))
        if tiled and (gaps or not keyframes):
            return grid, video_indices[:start], video[order].to(video_indices.device)
    raise ValueError(
        f"the last {len(video)} rows of video of the packed sequence have {grid} position ids "
        f"along (t, h, w), which is no grid of {len(video)} tokens: pack the generated video "
        f"without gaps, at one timestep, as MiniMaxH3ModularPipeline does"
    )


_video_read: Any = torch.compiler.disable(_video)  # from the device


def from_data_to_noise(timestep: Tensor) -> Tensor:
    """The noise level of MiniMax-H3's timesteps, 0 for noise and 1 for data: there is one for each
    kind of row, of which the noisiest counts, that which is generated."""
    return (1 - timestep.double()).amax().reshape(1)


_processors = {MiniMaxH3AttnProcessor: MiniMaxH3Processor}
_layers = layers_of("transformer_blocks", attention="attn")
_name = "MiniMaxH3Transformer3DModel"
register(Family(_name, minimax_h3_grid, _layers, _processors, noise=from_data_to_noise))
