"""Videos -> clips -> latents, with a VAE that diffusers loads."""

import json
import logging
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.data.order.buckets import Size, best_length, best_shape
from train.data.order.shots import breaks_in, find_shots, windows_of_shot
from train.data.sources.cache import file_identity
from train.data.sources.decode import decode_changes, video_size

logger = logging.getLogger(__name__)

PATCH = 2  # latents along each side of a token, in Wan and all who share its latents


def load_vae(folder: Path, device: torch.device | None = None) -> Any:
    """The VAE in a folder, in fp32, on `device` (default: the CPU).

    Any video VAE of diffusers will do: one with `encode`, whose config or attributes say by how
    much it compresses, as those of Wan, HunyuanVideo, LTX-Video and CogVideoX. Raises ValueError in
    one line where diffusers, the folder or the interface is wanting.
    """
    try:
        import diffusers
    except ImportError as e:
        raise ValueError("encoding videos takes diffusers: pip install diffusers") from e
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} has no config.json: give --vae the folder of a VAE that diffusers saved "
            "(of a pipeline's folder, the one called vae)"
        )
    try:
        options: Any = dict(torch_dtype=torch.float32, local_files_only=True)
        options |= dict(low_cpu_mem_usage=False, output_loading_info=True)
        name = json.loads((folder / "config.json").read_text()).get("_class_name", "")
        loaded: Any = getattr(diffusers, name).from_pretrained(str(folder), **options)
    except (OSError, ValueError, AttributeError, RuntimeError) as e:
        raise ValueError(f"diffusers cannot load {folder}: {' '.join(str(e).split())}") from e
    vae, info = loaded
    if lacking := info["missing_keys"]:  # diffusers draws them, and warns
        raise ValueError(f"{folder} lacks {len(lacking)} weights, {sorted(lacking)[0]} first")
    if not hasattr(vae, "encode") or compression(vae) is None:
        raise ValueError(
            f"{folder} is a {type(vae).__name__}: give a VAE of videos, as AutoencoderKLWan"
        )
    return vae.to(device or torch.device("cpu")).eval().requires_grad_(False)


def compression(vae: Any) -> tuple[int, int] | None:
    """By how much a VAE compresses time and space; None where it does not say."""
    found = []
    for config_name, name in (
        ("scale_factor_temporal", "temporal_compression_ratio"),
        ("scale_factor_spatial", "spatial_compression_ratio"),
    ):
        factor = vae.config.get(config_name) or vae.config.get(name) or getattr(vae, name, None)
        if factor is None and "block_out_channels" in vae.config and found:  # CogVideoX says one
            factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        if factor is None:
            return None
        found.append(int(factor))
    return found[0], found[1]


def normalisation(vae: Any) -> tuple[list[float], list[float]]:
    """Mean and deviation of a VAE's latents, channel by channel, as config or buffers have them.

    Where that has one factor for all channels, the mean is its shift and the deviation 1 / factor.
    """
    mean, std = (
        vae.config.get(name) or getattr(vae, name, None) for name in ("latents_mean", "latents_std")
    )
    if mean is None or std is None:
        scale = float(vae.config.get("scaling_factor") or 1.0)
        shift = float(vae.config.get("shift_factor") or 0.0)
        channels = int(vae.config.get("latent_channels") or vae.config.get("z_dim") or 0)
        return [shift] * channels, [1 / scale] * channels
    factor = float(vae.config.get("scaling_factor") or 1.0)
    return [float(x) for x in mean], [float(x) / factor for x in std]


def check_clip_size(vae: Any, num_frames: int, height: int, width: int) -> None:
    """ValueError with the nearest size that fits, for one that the VAE, or a model's patches of
    its latents, do not divide."""
    t, s = compression(vae) or (1, 1)
    if 1 < s < 32:  # LTX-Video, whose VAE makes 32 of one, has no patches
        s *= PATCH
    whole = (num_frames - 1) % t == 0 and height % s == 0 and width % s == 0
    if whole and min(num_frames, height, width) >= 1:
        return
    frames = max(0, round((num_frames - 1) / t)) * t + 1
    sides = [max(1, round(side / s)) * s for side in (height, width)]
    raise ValueError(
        f"num_frames={num_frames}, height={height}, width={width}: this VAE takes {t}k + 1 frames "
        f"and, with patches of {PATCH}x{PATCH} latents, sides that are multiples of {s}: "
        f"try {frames}, {sides[0]} and {sides[1]}"
    )


@torch.inference_mode()
def encode_clip(vae: Any, frames: Tensor) -> Tensor:
    """The mode of the VAE's posterior for frames uint8 [3, T, H, W]: fp32 [C, t, h, w], on the CPU.

    As the VAE gives it, not normalised. The mode is the posterior's mean: nothing is drawn.
    """
    x = frames[None].to(vae.device).float().div_(127.5).sub_(1)
    return vae.encode(x).latent_dist.mode()[0].cpu()


def find_clips(
    video: Path, sizes: Sequence[Size], stride: int, fps: float
) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Height and width of a video's clips, and the first frame and length of each.

    Of several sizes those that fit best (`order/buckets.py`); no clip is across a cut, or a break,
    which the log names. Clips begin `stride` frames apart, 0: their length. Decodes the video whole
    and keeps no frame. Raises UnreadableVideo.
    """
    height, width = sizes[0][1:]
    if len({(h, w) for _, h, w in sizes}) > 1:
        file_identity(video)
        height, width = best_shape(sizes, *video_size(video))
    changes = [change for _, change in decode_changes(video, height, width, fps)][1:]
    if breaks := breaks_in(changes):
        logger.warning("%s: %s", video, breaks)
    clips = []
    for shot in find_shots(changes):
        length = best_length(sizes, (height, width), shot[1] - shot[0])
        starts = windows_of_shot(shot, length, stride or length, 0.0, "train")
        clips += [(start, length) for start in starts]
    return (height, width), clips


def cut_clips(
    frames: Iterable[np.ndarray], clips: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, Tensor]]:
    """The clips of these first frames and lengths, with the first frame, as uint8 [3, T, H, W].

    In memory are no more frames than the longest clip has.
    """
    held: deque[np.ndarray] = deque(maxlen=max((length for _, length in clips), default=1))
    lengths = defaultdict(list)
    for start, length in clips:
        lengths[start + length - 1].append(length)
    for i, frame in enumerate(frames):
        held.append(frame)
        for length in lengths.get(i, ()):
            film = np.stack(list(held)[-length:])
            yield i - length + 1, torch.from_numpy(film).permute(3, 0, 1, 2)
