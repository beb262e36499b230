"""Frames of a video file at one size and one rate, by PyAV."""

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream


class UnreadableVideo(Exception):
    """A file that PyAV cannot decode; the message says why."""


def decode_frames(path: Path, height: int, width: int, fps: float) -> Iterator[np.ndarray]:
    """Yields frames [height, width, 3] uint8 RGB, `fps` of them for each second of video.

    The frame shown at time k / fps is the latest one that has begun by then, so a slower video
    repeats frames and a faster one drops some; `fps=0` takes every frame as it is. A frame is
    turned upright, scaled to cover the size, and cropped at its centre.

    Raises UnreadableVideo.
    """
    with _opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or 25)
        images = _at_rate(container.decode(stream), rate, height, width, fps)
        first = next(images, None)
        if first is None:
            raise UnreadableVideo("it has no frame")
        yield first
        yield from images


def video_size(path: Path) -> tuple[int, int]:
    """(height, width) of the first frame, turned upright. Raises UnreadableVideo."""
    with _opened(path) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            raise UnreadableVideo("it has no frame")
        return _upright(frame)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A video file and its first stream; what goes wrong within is UnreadableVideo."""
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if not container.streams.video:
                raise UnreadableVideo("it has no video stream")
            yield container, container.streams.video[0]
    except (av.error.FFmpegError, OSError) as e:
        raise UnreadableVideo(e.strerror or str(e)) from e
    except UnicodeDecodeError as e:
        raise UnreadableVideo(f"its header holds text that is not UTF-8: {e}") from e


def _at_rate(
    frames: Iterable[av.VideoFrame], rate: float, height: int, width: int, fps: float
) -> Iterator[np.ndarray]:
    shown = 0
    for frame, end in _with_ends(frames, 1 / rate):
        times = max(0, math.ceil(end * fps - 1e-6) - shown) if fps else 1
        if times:
            yield from itertools.repeat(_fit(frame, height, width), times)
            shown += times


def _with_ends(
    frames: Iterable[av.VideoFrame], spacing: float
) -> Iterator[tuple[av.VideoFrame, float]]:
    """Each frame with the time at which the next one begins, in seconds from the first one."""
    held, first, begin = None, 0.0, 0.0
    for i, frame in enumerate(frames):
        begin = frame.time if frame.time is not None else i * spacing
        if held is None:
            first = begin
        else:
            yield held, begin - first
        held = frame
    if held is not None:
        yield held, begin - first + spacing


def _upright(frame: av.VideoFrame) -> tuple[int, int]:
    """Its height and width as it is to be shown."""
    turned = frame.rotation // 90 % 2
    return (frame.width, frame.height) if turned else (frame.height, frame.width)


def _fit(frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
    turns, upright = frame.rotation // 90 % 4, _upright(frame)
    scale = max(height / upright[0], width / upright[1])
    h, w = max(height, round(upright[0] * scale)), max(width, round(upright[1] * scale))
    small = frame.reformat(
        width=h if turns % 2 else w,
        height=w if turns % 2 else h,
        format="rgb24",
        interpolation="AREA",
    )
    image = np.rot90(small.to_ndarray(), turns)
    top, left = (h - height) // 2, (w - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])
