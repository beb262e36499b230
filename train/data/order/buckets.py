"""Of a few sizes, the one that a video is trained at.

Each size is a program of its own to compile, and a batch holds clips of one size: so videos of many
shapes and lengths are brought to a few, each to the one that changes it least.
"""

import math
from collections.abc import Sequence

Size = tuple[int, int, int]
"""(frames, height, width) of a clip."""


def check_sizes(sizes: Sequence[Size]) -> None:
    """ValueError for sizes that are not positive, or given twice."""
    if any(min(size) < 1 for size in sizes) or len(set(sizes)) < len(sizes):
        said = " ".join(f"num_frames={t}, height={h}, width={w};" for t, h, w in sizes)
        raise ValueError(f"{said} give positive sizes, and each of several buckets once")


def best_shape(sizes: Sequence[Size], height: int, width: int) -> tuple[int, int]:
    """The (height, width) among the sizes for a picture that is scaled to cover it, and cropped.

    That of the nearest ratio of height to width, which crops least; of several the largest that the
    picture need not be enlarged for, and if it is too small for all of them the smallest.

    >>> sizes = [(17, 480, 832), (17, 832, 480), (17, 240, 416)]
    >>> best_shape(sizes, 1080, 1920), best_shape(sizes, 360, 640), best_shape(sizes, 640, 360)
    ((480, 832), (240, 416), (832, 480))
    """
    shapes = sorted({(h, w) for _, h, w in sizes})

    def crop(shape: tuple[int, int]) -> float:
        return round(abs(math.log(shape[0] * width / (shape[1] * height))), 6)

    nearest = [shape for shape in shapes if crop(shape) == min(map(crop, shapes))]
    whole = [(h, w) for h, w in nearest if h <= height and w <= width]
    return max(whole, key=math.prod) if whole else min(nearest, key=math.prod)


def best_length(sizes: Sequence[Size], shape: tuple[int, int], frames: int) -> int:
    """The most frames that the sizes of this shape have and `frames` suffice for; else the fewest.

    >>> [best_length([(17, 64, 96), (33, 64, 96)], (64, 96), n) for n in (100, 32, 9)]
    [33, 17, 17]
    """
    lengths = sorted(t for t, h, w in sizes if (h, w) == shape)
    return max((t for t in lengths if t <= frames), default=lengths[0])
