"""Sizes of a video, (frames, height, width) in pixels, and those of its latent."""

from __future__ import annotations

import argparse

STRIDE = (4, 8, 8)  # pixels to latents along (T, H, W), after the first frame
DEFAULT_SIZE = 81, 480, 832

Size = tuple[int, int, int]


def latent_size(size: Size) -> Size:
    """Frames, height and width of the latent of a video of this size in pixels.

    Raises:
        ValueError: frames that are not 4k + 1, sides that are no multiple of 16.
    """
    frames, height, width = size
    if frames < 1 or (frames - 1) % STRIDE[0]:
        near = 1 + STRIDE[0] * max(0, round((frames - 1) / STRIDE[0]))
        raise ValueError(f"--size {text_of(size)}: {frames} frames are not 4k + 1; try {near}")
    if height % 16 or width % 16 or height < 16 or width < 16:
        h, w = (max(16, 16 * round(s / 16)) for s in (height, width))
        raise ValueError(
            f"--size {text_of(size)}: height and width must be multiples of 16; try "
            f"{text_of((frames, h, w))}"
        )
    return 1 + (frames - 1) // STRIDE[0], height // STRIDE[1], width // STRIDE[2]


def size_of(text: str) -> Size:
    t, h, w = _numbers(text, 3)
    return t, h, w


def pair_of(text: str) -> tuple[int, int]:
    h, w = _numbers(text, 2)
    return h, w


def _numbers(text: str, due: int) -> list[int]:
    parts = text.lower().split("x")
    if len(parts) != due or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} must be {due} numbers with x between them")
    return [int(part) for part in parts]


def text_of(size: Size) -> str:
    return "x".join(map(str, size))
