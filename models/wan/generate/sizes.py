"""Sizes of a video, (frames, height, width) in pixels, and those of its latent."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

STRIDE = (4, 8, 8)  # pixels to latents along (T, H, W), after the first frame
CHANNELS = 16  # of latents of that stride: Wan 2.2's VAE with 48 has (4, 16, 16)
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
    sides = nearest_sides(height, width)
    if sides != (height, width):
        raise ValueError(
            f"--size {text_of(size)}: height and width must be multiples of 16; try "
            f"{text_of((frames, *sides))}"
        )
    return 1 + (frames - 1) // STRIDE[0], height // STRIDE[1], width // STRIDE[2]


def draft_size(size: Size, sides: tuple[int, int]) -> Size:
    """The size of a draft of these sides for a video.

    Raises:
        ValueError: sides that are no multiple of 16, or beyond the video's.
    """
    fits = nearest_sides(*sides)
    if fits != sides:
        raise ValueError(
            f"--draft {text_of(sides)}: height and width must be multiples of 16; try "
            f"{text_of(fits)}"
        )
    if sides[0] > size[1] or sides[1] > size[2]:
        raise ValueError(
            f"--draft {text_of(sides)} is larger than --size {text_of(size)}: give "
            f"{text_of(size[1:])} at most"
        )
    return size[0], *sides


def nearest_sides(height: int, width: int) -> tuple[int, int]:
    """The nearest that the VAE and the model's patches divide."""
    return max(16, 16 * round(height / 16)), max(16, 16 * round(width / 16))


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


def text_of(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
