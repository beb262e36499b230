"""A decoded frame as it is meant to be seen: whole, upright, opaque, with square pixels."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import av
import av.error
import av.filter
import numpy as np

Timed = tuple[av.VideoFrame, float, bool]
"""A frame, when it ends, and whether the film has a break before it (times.py)."""

MOST_CROPPED = 64  # times the pixels that are kept


class UnreadableVideo(Exception):
    """A file of which no frames can be had; the message says why."""


def shown_size(frame: av.VideoFrame, ratio: float) -> tuple[int, int]:
    """(height, width) of a frame as it is shown; `ratio` is its pixels' width to their height.

    Pixels are made square by stretching the shorter way, so that none is lost.
    """
    height, width = round(frame.height / min(ratio, 1)), round(frame.width * max(ratio, 1))
    return (height, width) if _axes(frame)[0, 0] else (width, height)


def fit(frame: av.VideoFrame, ratio: float, height: int, width: int) -> np.ndarray:
    """The frame as it is shown, scaled to cover a size and cropped at its centre: uint8 [H, W, 3].

    What is transparent is seen before black.
    """
    axes, shown = _axes(frame), shown_size(frame, ratio)
    scale = max(height / shown[0], width / shown[1])
    h, w = max(height, round(shown[0] * scale)), max(width, round(shown[1] * scale))
    if h * w > MOST_CROPPED * height * width:
        raise UnreadableVideo(
            f"its pictures are {shown[0]}x{shown[1]}: cropped to {height}x{width} they "
            f"would lose more than {MOST_CROPPED - 1} of {MOST_CROPPED} pixels"
        )
    turned = not axes[0, 0]
    small = _opaque(frame).reformat(
        width=h if turned else w,
        height=w if turned else h,
        format="rgb24",
        interpolation="AREA",
    )
    image = small.to_ndarray()
    image = image.swapaxes(0, 1) if turned else image
    image = image[:: axes[:, 1].sum(), :: axes[:, 0].sum()]
    top, left = (h - height) // 2, (w - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def deinterlaced(timed: Iterable[Timed]) -> Iterator[Timed]:
    """The same, with one picture made of each interlaced frame, whose lines are of two times.

    By FFmpeg's bwdif: the lines of the first field stay, the others are filled in between them.
    """
    for kind, run in itertools.groupby(timed, _interlaced):
        yield from (_one_field if kind else iter)(run)


def _interlaced(timed: Timed) -> tuple | None:
    """What frames of one filter have in common; None for those that need none."""
    frame = timed[0]
    return (frame.width, frame.height, frame.format.name) if frame.interlaced_frame else None


def _one_field(timed: Iterator[Timed]) -> Iterator[Timed]:
    first = next(timed)
    graph, frame = av.filter.Graph(), first[0]
    size: Any = {"width": frame.width, "height": frame.height, "format": frame.format}
    source = graph.add_buffer(**size, time_base=frame.time_base)
    field = graph.add("bwdif", "mode=send_frame")
    graph.link_nodes(source, field, graph.add("buffersink")).configure()
    waiting = deque()  # the filter has one out for one in, some frames later
    for frame, *when in itertools.chain([first], timed, [(None,)]):
        graph.vpush(frame)
        waiting.append(when)
        while True:
            try:
                made = graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                break
            yield made, *waiting.popleft()


def _axes(frame: av.VideoFrame) -> np.ndarray:
    """Where a frame's x and y point when it is shown: [[x to right, x down], [y to right, y down]],
    each 1, 0 or -1.

    From its display matrix, which has quarter turns and flips; UnreadableVideo for others.
    """
    side: Any = frame.side_data
    matrix = np.eye(2)
    if "DISPLAYMATRIX" in {data.type.name for data in side}:
        found = np.frombuffer(side["DISPLAYMATRIX"], np.int32, 9).reshape(3, 3)[:2, :2]
        if found.any():
            matrix = found / np.abs(found).max(axis=1, keepdims=True).clip(1)
    axes = matrix.round().astype(int)
    if np.abs(matrix - axes).max() > 0.05 or abs(np.linalg.det(axes)) != 1:
        raise UnreadableVideo(
            f"its pictures are shown neither upright nor by quarter turns: {axes}"
        )
    return axes


def _opaque(frame: av.VideoFrame) -> av.VideoFrame:
    form = frame.format
    if not form.has_palette and not any(part.is_alpha for part in form.components):
        return frame
    rgba = frame.to_ndarray(format="rgba")
    alpha = rgba[..., 3:]
    if alpha.min() == 255:
        return frame
    rgb = (rgba[..., :3] * (alpha / np.float32(255))).round().astype(np.uint8)
    return av.VideoFrame.from_ndarray(rgb, format="rgb24")
