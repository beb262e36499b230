"""Clips as moving pictures that open anywhere: animated GIFs, side by side and labelled."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MARGIN = 8
INK = (34, 34, 34)


def to_pixels(clip: Tensor) -> np.ndarray:
    """float [3, T, H, W] in about [-1, 1] -> uint8 [T, H, W, 3]."""
    return ((clip.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).cpu().numpy()


def side_by_side(
    rows: Sequence[Sequence[np.ndarray]],
    columns: Sequence[str],
    captions: Sequence[str],
    *,
    scale: int = 2,
) -> np.ndarray:
    """Clips [T, H, W, 3] in a labelled table: uint8 [T, height, width, 3].

    Each row is headed by its caption, each column by its name; pixels are `scale` times as large.
    """
    frames, height, width = rows[0][0].shape[:3]
    height, width = height * scale, width * scale
    head = ImageFont.load_default(size=17)
    small = ImageFont.load_default(size=14)
    size = (
        len(columns) * (width + MARGIN) + MARGIN,
        34 + len(rows) * (height + 26 + MARGIN),
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for c, name in enumerate(columns):
        middle = MARGIN + c * (width + MARGIN) + width / 2
        draw.text((middle, 18), name, fill=INK, font=head, anchor="mm")
    tops = [34 + r * (height + 26 + MARGIN) for r in range(len(rows))]
    for top, caption in zip(tops, captions, strict=True):
        draw.text((MARGIN, top + 11), caption, fill=INK, font=small, anchor="lm")
    table = np.repeat(np.asarray(sheet)[None], frames, axis=0)
    for top, row in zip(tops, rows, strict=True):
        for c, clip in enumerate(row):
            left = MARGIN + c * (width + MARGIN)
            large = clip.repeat(scale, 1).repeat(scale, 2)
            table[:, top + 24 : top + 24 + height, left : left + width] = large
    return table


def write_gif(path: Path, frames: np.ndarray, fps: float) -> None:
    """uint8 [T, H, W, 3] as an endless GIF with one palette for all frames."""
    palette = Image.fromarray(frames[:: max(1, len(frames) // 4)].reshape(-1, *frames.shape[2:]))
    palette = palette.quantize(256, dither=Image.Dither.NONE)
    images = [Image.fromarray(f).quantize(palette=palette) for f in frames]
    milliseconds = round(1000 / fps)
    images[0].save(path, save_all=True, append_images=images[1:], duration=milliseconds, loop=0)
