"""Moving digits: captioned clips without a file, for tests and first steps.

The digits are drawn from a 5x7 font below rather than from a dataset of handwriting: the clips are
there to move, overlap and match their captions, and 35 bits a digit do that with no dependency.
"""

from collections.abc import Sequence

import numpy as np
import torch

from train.data.batch import Sample
from train.data.order.buckets import Size, check_sizes

# Ten glyphs of 5x7 points, row by row, each row five bits.
FONT = [
    (14, 17, 19, 21, 25, 17, 14),
    (4, 12, 4, 4, 4, 4, 14),
    (14, 17, 1, 2, 4, 8, 31),
    (31, 2, 4, 2, 1, 17, 14),
    (2, 6, 10, 18, 31, 2, 2),
    (31, 16, 30, 1, 1, 17, 14),
    (6, 8, 16, 30, 17, 17, 14),
    (31, 1, 2, 4, 8, 8, 8),
    (14, 17, 17, 14, 17, 17, 14),
    (14, 17, 17, 15, 1, 2, 12),
]
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {"red": (235, 80, 70), "green": (90, 200, 90), "blue": (90, 130, 245)}
POINT = 3  # pixels a font point is wide and high
FASTEST = 3  # pixels a frame


def glyph(digit: int) -> np.ndarray:
    """The digit as bool [21, 15]."""
    rows = [[row >> (4 - x) & 1 for x in range(5)] for row in FONT[digit]]
    return np.kron(np.array(rows, dtype=bool), np.ones((POINT, POINT), dtype=bool))


class MovingDigits:
    """`length` clips of two coloured digits that drift and bounce off the edges.

    A clip is `dict(video=uint8 [3, num_frames, height, width], caption=str)` and a pure function of
    `first + index`; the caption names each digit, its colour and how it sets off. With `buckets`,
    sizes in place of that one, clips have them in turn.
    """

    def __init__(
        self,
        length: int = 1024,
        *,
        first: int = 0,
        num_frames: int = 17,
        height: int = 64,
        width: int = 64,
        buckets: Sequence[Size] = (),
    ) -> None:
        self.sizes: list[Size] = [(t, h, w) for t, h, w in buckets or [(num_frames, height, width)]]
        check_sizes(self.sizes)
        for num_frames, height, width in self.sizes:
            if min(height, width) < 32:
                raise ValueError(
                    f"two digits need a frame of 32x32 or more: enlarge num_frames={num_frames}, "
                    f"height={height}, width={width}"
                )
        self.length, self.first = length, first
        self.buckets = [range(i, length, len(self.sizes)) for i in range(len(self.sizes))]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(f"clip {index} of {self.length}")
        rng = np.random.default_rng(self.first + index)
        num_frames, *size = self.sizes[index % len(self.sizes)]
        video = np.zeros((num_frames, *size, 3), dtype=np.uint8)
        phrases = []
        for colour in rng.permutation(list(COLOURS))[:2]:
            digit = int(rng.integers(10))
            speed = rng.integers(1, 1 + FASTEST, size=2) * rng.choice((-1, 1), size=2)
            shape = glyph(digit)
            room = np.subtract(size, shape.shape)
            start = rng.integers(FASTEST, room - FASTEST + 1)
            path = _path(start, speed, room, num_frames)
            for frame, (y, x) in zip(video, path, strict=True):
                frame[y : y + shape.shape[0], x : x + shape.shape[1]][shape] = COLOURS[colour]
            vertical = "down" if speed[0] > 0 else "up"
            horizontal = "right" if speed[1] > 0 else "left"
            phrases.append(f"a {colour} {NAMES[digit]} moves {vertical} and {horizontal}")
        return {
            "video": torch.from_numpy(video).permute(3, 0, 1, 2).contiguous(),
            "caption": ", ".join(phrases),
        }


def _path(start: np.ndarray, speed: np.ndarray, room: np.ndarray, frames: int) -> np.ndarray:
    """Top left corners [frames, 2] of a point reflected at 0 and at `room`."""
    straight = start + speed * np.arange(frames)[:, None]
    return room - np.abs(room - straight % (2 * room))
