"""From a walk to files: what one process films at a time."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from train.data.doom.walks import FPS, Walk


@dataclass(frozen=True)
class Reel:
    """A walk in a map, and the files for its first takes."""

    map: str
    walk: int
    height: int
    num_frames: int
    files: tuple[Path, ...]


def film(reel: Reel) -> int:
    """Film a walk, a video and a caption for each take that is not there; returns how many.

    Files appear whole. A take that is there is walked through again, to come to the next.
    """
    filmed = 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command's process hears it, and ends us
    with Walk(reel.map, reel.height) as walk:
        takes = walk.takes(reel.walk, len(reel.files), reel.num_frames)
        for file, take in zip(reel.files, takes, strict=True):
            if file.exists():
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            draft = file.with_name(f"_{os.getpid()}.tmp")
            try:
                draft.write_text(take.caption + "\n")
                draft.replace(file.with_suffix(".txt"))
                write_lossless(draft, take.frames)
                draft.replace(file)  # last, since the video says that the clip is there
            finally:
                draft.unlink(missing_ok=True)
            filmed += 1
    return filmed


def write_lossless(file: Path, frames: np.ndarray) -> None:
    """uint8 [T, H, W, 3] as an .mkv whose pixels are read as they were."""
    with av.open(str(file), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=FPS, options={"coder": "1", "context": "1"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
