"""Videos whose frames say which they are, so that a test can read a clip's origin off them."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

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
