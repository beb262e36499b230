"""HunyuanVideo: text joins the video, after it, at lengths that differ within a batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from torch import Tensor

from flexsparse.diffusers.call import Grid, Processor, behind
from flexsparse.diffusers.families import Family, layers_of, register
from flexsparse.tiling import VideoTiling


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
        tokens, text = hidden_states.shape[1], encoder_hidden_states.shape[1]
        tiling = self.tiling(tokens, text, image_rotary_emb)
        first = tiling.text - text  # before the video
        x = behind(hidden_states, first)
        names = ("to_q", "to_k", "to_v"), ("norm_q", "norm_k")
        if attn.add_q_proj is None:
            x = tiling.to_tiles(torch.cat((x, encoder_hidden_states), 1))
            q, k, v = _project(attn, x, *names)
        else:
            x = tiling.to_tiles(F.pad(x, (0, 0, 0, text)))
            end = tiling.video_rows + first
            words = F.pad(encoder_hidden_states, (0, 0, 0, tiling.padded_tokens - end - text))
            own = ("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k")
            of_both = zip(_project(attn, x[:, :end], *names), _project(attn, words, *own))
            q, k, v = (torch.cat(pair, 1) for pair in of_both)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        if image_rotary_emb is not None:
            as_pair = lambda x: self.as_pair(*(behind(y, first, 0) for y in x))  # noqa: E731
            rotary = self.call.rotary(image_rotary_emb, tiling, as_pair)
            q, k = self.rotate(q, rotary), self.rotate(k, rotary)
        lengths = None
        if attention_mask is not None:
            lengths = first + self.text_lengths(attention_mask, tokens, text)
        out = self.attend(attn, x, q, k, v, tiling, lengths)
        out, words = behind(out[:, :tokens], -first), out[:, tokens:]
        if getattr(attn, "to_out", None) is not None:
            out = attn.to_out[1](attn.to_out[0](out))
        if getattr(attn, "to_add_out", None) is not None:
            words = attn.to_add_out(words)
        return out, words

    rotate: Any = staticmethod(apply_rotary_emb)  # whose annotations are those of another mode

    def as_pair(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[..., tokens, D]`` of a table, tokens first."""
        return cos, sin

    def tiling(self, tokens: int, text: int, rotary: Any) -> VideoTiling:
        return self.call.tiling(tokens, text, rotary)

    def text_lengths(self, mask: Tensor, tokens: int, text: int) -> Tensor:
        """The lengths of the batch's texts, from their mask: the model makes no other."""
        if mask.dtype != torch.bool or mask.shape[1:] != (1, 1, tokens + text):
            self.refuse(attention_mask=mask)
        return mask[:, 0, 0, tokens:].sum(-1)


def check_text_mask(mask: Tensor | None) -> None:
    """Raise ValueError unless each text of ``[B, tokens]`` stands at the start, padding behind it.
    Not in a compiled program, which could read no value."""
    if mask is None or torch.compiler.is_compiling():
        return
    mask = mask.bool()
    if (holes := (mask[:, 1:] & ~mask[:, :-1]).any(-1)).any():
        raise ValueError(
            f"encoder_attention_mask leaves out tokens before the end of text {holes.tolist()}, "
            "which sparse attention cannot: put the padding of each text behind it"
        )


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


layers = layers_of("transformer_blocks", "single_transformer_blocks", attention="attn")
_processors = {HunyuanVideoAttnProcessor2_0: HunyuanVideoProcessor}
register(Family("HunyuanVideoTransformer3DModel", hunyuan_video_grid, layers, _processors))
