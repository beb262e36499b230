"""Videos -> clips -> latents, with a VAE that diffusers loads."""

import itertools
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.data.decode import decode_frames
from train.data.shots import find_shots, frame_change, windows_of_shot

PATCH = 2  # latents along each side of a token, in Wan and all who share its latents


def load_vae(folder: Path) -> Any:
    """The VAE in a folder, in fp32, on the accelerator if there is one.

    Any class of diffusers with the interface of AutoencoderKLWan will do. Raises ValueError in one
    line where diffusers, the folder or the interface is wanting.
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
    if not hasattr(vae, "encode") or "scale_factor_temporal" not in vae.config:
        raise ValueError(
            f"{folder} is a {type(vae).__name__}: give a VAE with the interface of AutoencoderKLWan"
        )
    accelerator = torch.accelerator.current_accelerator()
    return vae.to(accelerator or torch.device("cpu")).eval().requires_grad_(False)


def check_clip_size(vae: Any, num_frames: int, height: int, width: int) -> None:
    """ValueError with the nearest size that fits, for one that the VAE, or a model's patches of
    its latents, do not divide."""
    t, s = vae.config.scale_factor_temporal, vae.config.scale_factor_spatial * PATCH
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
    video: Path, num_frames: int, stride: int, *, height: int, width: int, fps: float
) -> list[int]:
    """First frames of a video's clips, none across a cut; decodes it whole, keeps no frame.

    Raises UnreadableVideo.
    """
    frames = decode_frames(video, height, width, fps)
    changes = [frame_change(a, b) for a, b in itertools.pairwise(frames)]
    return [
        start
        for shot in find_shots(changes)
        for start in windows_of_shot(shot, num_frames, stride, 0.0, "train")
    ]


def cut_clips(
    frames: Iterable[np.ndarray], starts: Sequence[int], num_frames: int
) -> Iterator[tuple[int, Tensor]]:
    """The clips that begin at `starts`, as uint8 [3, num_frames, H, W]; in memory one at a time."""
    held: deque[np.ndarray] = deque(maxlen=num_frames)
    wanted = set(starts)
    for i, frame in enumerate(frames):
        held.append(frame)
        start = i - num_frames + 1
        if start in wanted:
            yield start, torch.from_numpy(np.stack(held)).permute(3, 0, 1, 2)
