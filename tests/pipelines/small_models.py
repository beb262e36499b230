"""Small random models of diffusers, each with a batch of its own form."""

from typing import Any

import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from more_small_models import MORE
from small import HEADS, Grid, Small, as_dtype, randn, run  # noqa: F401  # for the tests
from torch import nn


def wan() -> nn.Module:
    sizes = dict(in_channels=4, out_channels=4, text_dim=8, ffn_dim=32, num_layers=2, freq_dim=16)
    return WanTransformer3DModel(**HEADS, **sizes)


def wan_batch(grid: Grid, seed: int) -> dict[str, Any]:
    t, h, w = grid
    return dict(
        hidden_states=randn(seed, 2, 4, t, 2 * h, 2 * w),
        timestep=torch.tensor([100, 700]),
        encoder_hidden_states=randn(seed + 1, 2, 6, 8),
    )


def wan_vace() -> nn.Module:
    sizes = dict(in_channels=4, out_channels=4, text_dim=8, ffn_dim=32, num_layers=1, freq_dim=16)
    return WanVACETransformer3DModel(**HEADS, **sizes, vace_layers=[0], vace_in_channels=6)


def wan_vace_batch(grid: Grid, seed: int) -> dict[str, Any]:
    t, h, w = grid
    control = randn(seed + 2, 2, 6, t, 2 * h, 2 * w)
    return wan_batch(grid, seed) | dict(control_hidden_states=control)


def hunyuan_video() -> nn.Module:
    sizes = dict(in_channels=4, out_channels=4, num_layers=1, num_single_layers=1)
    text = dict(num_refiner_layers=1, text_embed_dim=8, pooled_projection_dim=8)
    axes = dict(patch_size=2, patch_size_t=1, rope_axes_dim=(4, 6, 6))
    return HunyuanVideoTransformer3DModel(**HEADS, **sizes, **text, **axes)


def hunyuan_video_batch(grid: Grid, seed: int) -> dict[str, Any]:
    lengths = torch.tensor([3, 9])
    return wan_batch(grid, seed) | dict(
        encoder_hidden_states=randn(seed + 1, 2, 9, 8),
        encoder_attention_mask=(torch.arange(9) < lengths[:, None]).long(),
        pooled_projections=randn(seed + 2, 2, 8),
        guidance=torch.tensor([1.0, 2.0]),
    )


def cogvideox() -> nn.Module:
    sizes = dict(in_channels=4, out_channels=4, time_embed_dim=8, num_layers=2, patch_size=2)
    text = dict(text_embed_dim=8, max_text_seq_length=7)
    return CogVideoXTransformer3DModel(
        **HEADS, **sizes, **text, use_rotary_positional_embeddings=True
    )


def cogvideox_batch(grid: Grid, seed: int) -> dict[str, Any]:
    t, h, w = grid
    return dict(
        hidden_states=randn(seed, 2, t, 4, 2 * h, 2 * w),
        encoder_hidden_states=randn(seed + 1, 2, 7, 8),
        timestep=torch.tensor([100, 700]),
        image_rotary_emb=get_3d_rotary_pos_embed(16, ((0, 0), (h, w)), (h, w), t),
    )


def ltx() -> nn.Module:
    sizes = dict(in_channels=8, out_channels=8, cross_attention_dim=32, num_layers=2)
    return LTXVideoTransformer3DModel(**HEADS, **sizes, caption_channels=8)


def ltx_batch(grid: Grid, seed: int) -> dict[str, Any]:
    t, h, w = grid
    return dict(
        hidden_states=randn(seed, 2, t * h * w, 8),
        encoder_hidden_states=randn(seed + 1, 2, 6, 8),
        timestep=torch.tensor([100, 700]),
        encoder_attention_mask=torch.ones(2, 6),
        num_frames=t,
        height=h,
        width=w,
    )


SMALL = {
    "wan": Small(wan, wan_batch, 0),
    "vace": Small(wan_vace, wan_vace_batch, 0),
    "hunyuan": Small(hunyuan_video, hunyuan_video_batch, 9),
    "cogvideox": Small(cogvideox, cogvideox_batch, 7, 7),
    "ltx": Small(ltx, ltx_batch, 0),
} | MORE
# with a layer of each kind: for what lies around layers
KINDS = "wan", "vace", "hunyuan", "cogvideox", "ltx", "mochi", "cosmos3"
