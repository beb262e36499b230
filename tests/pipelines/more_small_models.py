"""More of the same: relatives of Wan and HunyuanVideo, Mochi, Cosmos and others."""

from typing import Any

import torch
from diffusers import (
    AllegroTransformer3DModel,
    AnyFlowTransformer3DModel,
    ChronoEditTransformer3DModel,
    ConsisIDTransformer3DModel,
    Cosmos3OmniTransformer,
    CosmosTransformer3DModel,
    EasyAnimateTransformer3DModel,
    HeliosTransformer3DModel,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackTransformer3DModel,
    MochiTransformer3DModel,
    MotifVideoTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanAnimateTransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed, get_3d_rotary_pos_embed_allegro
from small import HEADS, Grid, Small, randn
from torch import nn

CHANNELS = dict(in_channels=4, out_channels=4)
LIKE_WAN = dict(**HEADS, **CHANNELS, text_dim=8, ffn_dim=32, num_layers=2, freq_dim=16)
AXES = dict(patch_size=2, patch_size_t=1, rope_axes_dim=(4, 6, 6))


def batch(grid: Grid, seed: int, text: int = 6) -> dict[str, Any]:
    t, h, w = grid
    return dict(
        hidden_states=randn(seed, 2, 4, t, 2 * h, 2 * w),
        timestep=torch.tensor([100, 700]),
        encoder_hidden_states=randn(seed + 1, 2, text, 8),
    )


def masked(grid: Grid, seed: int, text: int = 9) -> dict[str, Any]:
    mask = (torch.arange(text) < torch.tensor([3, text])[:, None]).long()
    return batch(grid, seed, text) | dict(encoder_attention_mask=mask)


def skyreels_v2() -> nn.Module:
    return SkyReelsV2Transformer3DModel(**LIKE_WAN)


def chronoedit() -> nn.Module:
    return ChronoEditTransformer3DModel(**LIKE_WAN, rope_temporal_skip_len=8)


def wan_animate() -> nn.Module:
    motion = dict(motion_encoder_size=8, motion_style_dim=8, motion_dim=4, motion_encoder_dim=8)
    face = dict(face_encoder_hidden_dim=8, face_encoder_num_heads=2, inject_face_latents_blocks=2)
    sizes = LIKE_WAN | dict(in_channels=12, latent_channels=4)
    channels = dict(motion_encoder_channel_sizes={"4": 8, "8": 8})
    return WanAnimateTransformer3DModel(**sizes, **motion, **face, **channels, image_dim=None)


def wan_animate_batch(grid: Grid, seed: int) -> dict[str, Any]:
    t, h, w = max(grid[0], 2), *grid[1:]
    return batch((t, h, w), seed) | dict(
        hidden_states=randn(seed, 2, 12, t, 2 * h, 2 * w),
        pose_hidden_states=randn(seed + 2, 2, 4, t - 1, 2 * h, 2 * w),
        face_pixel_values=randn(seed + 3, 2, 3, 4 * (t - 1), 8, 8),
    )


def anyflow() -> nn.Module:
    return AnyFlowTransformer3DModel(**LIKE_WAN)


def anyflow_batch(grid: Grid, seed: int) -> dict[str, Any]:
    t, h, w = grid
    times = torch.tensor([[100.0], [700.0]]).repeat(1, t)
    return batch(grid, seed) | dict(
        hidden_states=randn(seed, 2, t, 4, 2 * h, 2 * w), timestep=times, r_timestep=times / 2
    )


def helios() -> nn.Module:
    model = HeliosTransformer3DModel(**LIKE_WAN, rope_dim=(4, 6, 6), is_amplify_history=True)
    for block in model.blocks:  # two numbers: too few for one error to be held to another
        block.attn1.history_key_scale.requires_grad_(False)
    return model


def history(grid: Grid) -> int:
    """Tokens of two frames at half the size and four at a quarter."""
    _, h, w = grid
    return -(-h // 2) * -(-w // 2) + -(-h // 4) * -(-w // 4)


def helios_batch(grid: Grid, seed: int) -> dict[str, Any]:
    t, h, w = max(grid[0], 2), *grid[1:]
    frames = dict(short=1, mid=2, long=4)
    names = {f"latents_history_{name}": n for name, n in frames.items()}
    latents = {x: randn(seed + 5, 2, 4, n, 2 * h, 2 * w) for x, n in names.items()}
    places = {f"indices_{x}": torch.arange(n).repeat(2, 1) for x, n in names.items()}
    places |= dict(indices_hidden_states=torch.arange(7, 6 + t).repeat(2, 1))
    return batch((t - 1, h, w), seed) | latents | places


def hunyuan_video15() -> nn.Module:
    text = dict(num_refiner_layers=1, text_embed_dim=8, text_embed_2_dim=6, image_embed_dim=10)
    return HunyuanVideo15Transformer3DModel(**HEADS, **CHANNELS, **AXES, **text, num_layers=2)


def hunyuan_video15_batch(grid: Grid, seed: int) -> dict[str, Any]:
    return masked(grid, seed) | dict(
        timestep=torch.tensor([100.0, 700.0]),
        encoder_hidden_states_2=randn(seed + 2, 2, 4, 6),
        encoder_attention_mask_2=torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]),
        image_embeds=randn(seed + 3, 2, 3, 10),
    )


def framepack() -> nn.Module:
    text = dict(num_refiner_layers=1, text_embed_dim=8, pooled_projection_dim=8)
    image = dict(has_image_proj=True, image_proj_dim=10, has_clean_x_embedder=True)
    sizes = dict(num_layers=1, num_single_layers=1)
    kinds = HEADS | CHANNELS | AXES
    return HunyuanVideoFramepackTransformer3DModel(**kinds, **text, **image, **sizes)


def framepack_batch(grid: Grid, seed: int) -> dict[str, Any]:
    t, h, w = max(grid[0], 2), *grid[1:]
    frames = dict(clean=1, history_2x=2, history_4x=4)
    latents = {f"latents_{x}": randn(seed + 5, 2, 4, n, 2 * h, 2 * w) for x, n in frames.items()}
    places = {f"indices_latents_{x}": torch.arange(n) for x, n in frames.items()}
    return (masked((t - 1, h, w), seed) | latents | places) | dict(
        indices_latents=torch.arange(7, 6 + t),
        pooled_projections=randn(seed + 2, 2, 8),
        image_embeds=randn(seed + 3, 2, 3, 10),
        guidance=torch.tensor([1.0, 2.0]),
    )


def mochi() -> nn.Module:
    text = dict(pooled_projection_dim=24, text_embed_dim=8, time_embed_dim=16)
    return MochiTransformer3DModel(**HEADS, **text, in_channels=4, num_layers=2)


def cosmos() -> nn.Module:
    sizes = dict(num_layers=2, text_embed_dim=8, adaln_lora_dim=8, max_size=(8, 16, 16))
    no_torchvision = dict(concat_padding_mask=False)  # which would size the mask
    later = dict(extra_pos_embed_type=None)  # than Cosmos 1, which has no fp64
    return CosmosTransformer3DModel(**HEADS, **CHANNELS, **sizes, **no_torchvision, **later)


def cosmos_batch(grid: Grid, seed: int) -> dict[str, Any]:
    return batch(grid, seed) | dict(timestep=torch.tensor([0.1, 0.7]), fps=16)


def cosmos3() -> nn.Module:
    sizes = dict(head_dim=16, hidden_size=64, intermediate_size=32, num_attention_heads=4)
    latent = dict(latent_channel=4, patch_latent_dim=16, rope_axes_dim=(4, 2, 2))
    kinds = dict(num_key_value_heads=2, num_hidden_layers=2, vocab_size=32, sound_gen=True)
    return Cosmos3OmniTransformer(**sizes, **latent, **kinds, sound_dim=6)


def cosmos3_batch(grid: Grid, seed: int) -> dict[str, Any]:
    """Seven tokens of text, and five of sound."""
    t, h, w = grid
    end = 7 + t * h * w
    return dict(
        input_ids=torch.arange(7),
        text_indexes=torch.arange(7),
        position_ids=randn(seed, 3, end + 5).cumsum(-1),
        und_len=7,
        sequence_length=end + 5,
        vision_tokens=[randn(seed + 1, 1, 4, t, 2 * h, 2 * w)],
        vision_token_shapes=[grid],
        vision_sequence_indexes=torch.arange(7, end),
        vision_mse_loss_indexes=torch.arange(7, end),
        vision_timesteps=torch.full((t * h * w,), 300.0),
        vision_noisy_frame_indexes=[torch.arange(t)],
        sound_tokens=[randn(seed + 2, 6, 5)],
        sound_token_shapes=[(5, 1, 1)],
        sound_sequence_indexes=torch.arange(end, end + 5),
        sound_mse_loss_indexes=torch.arange(end, end + 5),
        sound_timesteps=torch.full((5,), 300.0),
        sound_noisy_frame_indexes=[torch.arange(5)],
    )


def consisid() -> nn.Module:
    text = dict(text_embed_dim=8, max_text_seq_length=7, time_embed_dim=8)
    rotary = dict(use_rotary_positional_embeddings=True)
    return ConsisIDTransformer3DModel(**HEADS, **CHANNELS, **text, **rotary, num_layers=2)


def consisid_batch(grid: Grid, seed: int) -> dict[str, Any]:
    t, h, w = grid
    return batch(grid, seed, 7) | dict(
        hidden_states=randn(seed, 2, t, 4, 2 * h, 2 * w),
        image_rotary_emb=get_3d_rotary_pos_embed(16, ((0, 0), (h, w)), (h, w), t),
    )


def easyanimate() -> nn.Module:
    sizes = dict(num_layers=2, mmdit_layers=1, time_embed_dim=8, text_embed_dim=8, patch_size=2)
    return EasyAnimateTransformer3DModel(**HEADS, **CHANNELS, **sizes)


def allegro() -> nn.Module:
    sizes = dict(num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24)
    return AllegroTransformer3DModel(**CHANNELS, **sizes, num_layers=2, caption_channels=8)


def allegro_batch(grid: Grid, seed: int) -> dict[str, Any]:
    t, h, w = grid
    *tables, x, y, z = get_3d_rotary_pos_embed_allegro(12, ((0, 0), (h, w)), (h, w), t)
    places = torch.cartesian_prod(x.long(), y.long(), z.long()).T.reshape(3, 1, -1).contiguous()
    return batch(grid, seed) | dict(image_rotary_emb=(tuple(tables), tuple(places)))


def motif_video() -> nn.Module:
    sizes = dict(num_layers=1, num_single_layers=2, num_decoder_layers=1, text_embed_dim=8)
    kinds = HEADS | CHANNELS | AXES
    model = MotifVideoTransformer3DModel(**kinds, **sizes, image_embed_dim=10)
    model.time_text_embed.timestep_embedder.register_forward_pre_hook(as_weights)
    return model


def as_weights(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """diffusers' own model has no fp64 by itself."""
    return tuple(x.to(module.linear_1.weight.dtype) for x in args)


def motif_video_batch(grid: Grid, seed: int) -> dict[str, Any]:
    return masked(grid, seed) | dict(image_embeds=randn(seed + 3, 2, 3, 10))


MORE = {
    "hunyuan15": Small(hunyuan_video15, hunyuan_video15_batch, 16),
    "animate": Small(wan_animate, wan_animate_batch, 0, frames=2),
    "skyreels": Small(skyreels_v2, batch, 0),
    "chronoedit": Small(chronoedit, batch, 0),
    "framepack": Small(framepack, framepack_batch, lambda g: 12 + history(g), history, 2),
    "mochi": Small(mochi, masked, 9),
    "cosmos": Small(cosmos, cosmos_batch, 0),
    "cosmos3": Small(cosmos3, cosmos3_batch, 12, 7),
    "consisid": Small(consisid, consisid_batch, 7, 7),
    "easyanimate": Small(easyanimate, batch, 6, 6),
    "allegro": Small(allegro, allegro_batch, 0),
    "anyflow": Small(anyflow, anyflow_batch, 0),
    "helios": Small(helios, helios_batch, history, history, 2),
    "motif": Small(motif_video, motif_video_batch, 12),
}
