"""Small random models of diffusers, each with a batch of its own form."""

from typing import Any

import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    Kandinsky5Transformer3DModel,
    Kandinsky6Transformer3DModel,
    LTX2VideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    MiniMaxH3Transformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.modular_pipelines.minimax_h3.before_denoise import (
    MiniMaxH3PrepareLayoutStep,
    MiniMaxH3SetTimestepsStep,
)
from more_small_models import MORE
from small import HEADS, Grid, Small, as_dtype, randn, run  # noqa: F401  # for the tests
from torch import Tensor, nn


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


def minimax_h3() -> nn.Module:
    sizes = dict(hidden_size=24, num_layers=2, num_refiner_layers=1, ffn_dim=32, in_channels=2)
    embeds = dict(freq_dim=16, time_embed_hidden_dim=16, time_embed_dim=16, rope_freq_dim=2)
    return MiniMaxH3Transformer3DModel(**HEADS, **sizes, **embeds, audio_in_channels=3, text_dim=8)


def minimax_h3_batch(grid: Grid, seed: int, keyframes: tuple[str, ...] = ()) -> dict[str, Any]:
    """As MiniMax's own pipeline packs it: text, keyframes, audio of two channels, video."""
    t, h, w = grid
    pack = MiniMaxH3PrepareLayoutStep.build_packed_sequence
    positions, tags, video, audio, text, *given = pack(
        torch.ones(5), t, 2 * h, 2 * w, 2, (1, 2, 2), 2, 2, 0, keyframes
    )
    times = MiniMaxH3SetTimestepsStep.build_row_timesteps
    timestep, levels = times(video, audio, *given, 5, 0.3, 0.4, 0.999, 1.0)
    return dict(
        hidden_states=randn(seed, 2, len(video), 8),
        audio_hidden_states=randn(seed + 2, 2, len(audio), 3),
        encoder_hidden_states=randn(seed + 1, 2, len(text), 8),
        timestep=timestep,
        timestep_indices=levels,
        token_tags=tags,
        position_ids=positions,
        video_indices=video,
        audio_indices=audio,
        text_indices=text,
    )


KANDINSKY: dict[str, Any] = dict(
    **dict(in_visual_dim=4, out_visual_dim=4, in_text_dim=8, in_text_dim2=8, time_dim=16),
    **dict(model_dim=32, ff_dim=32, num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 6, 6)),
)


def kandinsky5(**changes: Any) -> nn.Module:
    model = Kandinsky5Transformer3DModel(**KANDINSKY | changes)
    # it takes the layer for fp32, as from_pretrained leaves it
    model.time_embeddings.in_layer.register_forward_pre_hook(as_weights)
    return model


def as_weights(layer: nn.Module, args: tuple[Tensor]) -> Tensor:
    return args[0].to(layer.weight.dtype)


def kandinsky5_batch(grid: Grid, seed: int) -> dict[str, Any]:
    t, h, w = grid
    return dict(
        hidden_states=randn(seed, 2, t, 2 * h, 2 * w, 4),
        encoder_hidden_states=randn(seed + 1, 2, 6, 8),
        timestep=torch.tensor([100, 700]),
        pooled_projections=randn(seed + 2, 2, 8),
        visual_rope_pos=[torch.arange(size) for size in grid],
        text_rope_pos=torch.arange(6),
    )


def kandinsky6() -> nn.Module:
    return Kandinsky6Transformer3DModel(**KANDINSKY, visual_cond=False, in_audio_dim=3)


def kandinsky6_batch(grid: Grid, seed: int) -> dict[str, Any]:
    batch, places = kandinsky5_batch(grid, seed), ("visual_rope_pos", "text_rope_pos")
    batch = {name: x for name, x in batch.items() if name not in places}
    mask = torch.arange(6) < torch.tensor([[3], [6]])
    return batch | dict(
        audio_hidden_states=randn(seed + 3, 2, 7, 3), encoder_attention_mask=mask[:, None, None]
    )


def ltx2(**changes: Any) -> nn.Module:
    sizes = dict(in_channels=8, out_channels=8, cross_attention_dim=32, num_layers=2)
    audio = dict(
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
    )
    return LTX2VideoTransformer3DModel(**HEADS | sizes | audio | changes, caption_channels=8)


def ltx2_batch(grid: Grid, seed: int) -> dict[str, Any]:
    """As LTX2ConditionPipeline calls it, with tokens of conditions after the video's."""
    tokens = grid[0] * grid[1] * grid[2] + 6
    return ltx_batch(grid, seed) | dict(
        hidden_states=randn(seed, 2, tokens, 8),
        video_coords=3 * randn(seed + 4, 2, 3, tokens, 2),
        audio_hidden_states=randn(seed + 2, 2, 5, 4),
        audio_encoder_hidden_states=randn(seed + 3, 2, 6, 8),
        audio_encoder_attention_mask=torch.ones(2, 6),
        audio_num_frames=5,
    )


SMALL = {
    "wan": Small(wan, wan_batch, 0),
    "vace": Small(wan_vace, wan_vace_batch, 0),
    "hunyuan": Small(hunyuan_video, hunyuan_video_batch, 9),
    "cogvideox": Small(cogvideox, cogvideox_batch, 7, 7),
    "ltx": Small(ltx, ltx_batch, 0),
    "minimax_h3": Small(minimax_h3, minimax_h3_batch, 9, 9),
    "kandinsky5": Small(kandinsky5, kandinsky5_batch, 0),
    "kandinsky6": Small(kandinsky6, kandinsky6_batch, 0),
    "ltx2": Small(ltx2, ltx2_batch, 6),
} | MORE
# with a layer of each kind: for what lies around layers
KINDS = (
    *("wan", "vace", "hunyuan", "cogvideox", "ltx", "mochi", "cosmos3"),
    *("minimax_h3", "kandinsky5", "kandinsky6", "ltx2"),
)
