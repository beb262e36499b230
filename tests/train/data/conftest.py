"""Videos whose frames say which they are, so that a test can read a clip's origin off them."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

MS = Fraction(1, 1000)
SCENES = [(10, 200), (120, 20), (220, 90), (60, 150)]  # green and blue of each scene


def frame_of(scene: int, number: int, height: int = 32, width: int = 32) -> np.ndarray:
    """A plain frame: its red is the frame's number in the video, its green and blue the scene's."""
    return np.full((height, width, 3), (number, *SCENES[scene]), dtype=np.uint8)


@pytest.fixture
def origin_of() -> Callable[[np.ndarray], tuple[int, int]]:
    """origin_of(frame [H, W, 3]): the (scene, number) that `frame_of` was given."""

    def origin(frame: np.ndarray) -> tuple[int, int]:
        number, green, blue = (int(value) for value in frame[0, 0])
        return SCENES.index((green, blue)), number

    return origin


@pytest.fixture
def write_video() -> Callable[..., Path]:
    """write_video(path, frames, rate=10): a video file, lossless (PNG pictures in a container)."""

    def write(path: Path, frames: list[np.ndarray], rate: int = 10) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("png", rate=rate)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "rgb24"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture
def write_scenes(write_video) -> Callable[..., Path]:
    """write_scenes(path, [20, 9]): a video of scenes of 20 and 9 frames with a cut between them."""

    def write(path: Path, lengths: list[int], **options) -> Path:
        scenes = [scene for scene, length in enumerate(lengths) for _ in range(length)]
        return write_video(path, [frame_of(s, i) for i, s in enumerate(scenes)], **options)

    return write


@pytest.fixture
def write_film() -> Callable[..., Path]:
    """write_film(path, frames, codec, pix_fmt): a video file as its container or codec can have it.

    `frames` are arrays, or PyAV's own; `times` theirs in ms; `setup(stream)` is called before the
    first, `options` are the codec's and `header` the container's.
    """

    def write(
        path: Path,
        frames: list,
        codec: str = "ffv1",
        pix_fmt: str = "bgr0",
        *,
        rate: int = 10,
        times: list[int] | None = None,
        setup: Callable = lambda stream: None,
        options: dict[str, str] | None = None,
        header: dict[str, str] | None = None,
    ) -> Path:
        with av.open(str(path), "w", options=header or {}) as container:
            stream: Any = container.add_stream(codec, rate=rate, options=options or {})
            stream.pix_fmt = pix_fmt
            if times:
                stream.codec_context.time_base = MS
            setup(stream)
            for i, frame in enumerate(frames):
                if isinstance(frame, np.ndarray):
                    kind = "rgba" if frame.shape[-1] == 4 else "rgb24"
                    frame = av.VideoFrame.from_ndarray(frame, format=kind)
                if not i:
                    stream.height, stream.width = frame.height, frame.width
                if times:
                    frame.time_base, frame.pts = MS, times[i]
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write
