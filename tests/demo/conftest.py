"""A folder of short videos, and settings that make the demo small."""

from dataclasses import replace

import av
import pytest

from train.data import MovingDigits
from train.demo.opening import Opening
from train.demo.settings import Settings


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """Two captioned videos of moving digits, 40 frames of 32x48."""
    folder = tmp_path_factory.mktemp("videos")
    clips = MovingDigits(2, num_frames=40, height=32, width=48)
    for i, name in enumerate("ab"):
        clip = clips[i]
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
            for frame in clip["video"].permute(1, 2, 3, 0).numpy():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        (folder / f"{name}.txt").write_text(clip["caption"])
    return folder


@pytest.fixture
def tiny():
    """512 tokens in 16 tiles; four steps."""
    return Settings(
        video=(8, 32, 32),
        patch=(1, 4, 4),
        dim=32,
        heads=2,
        layers=2,
        ffn=32,
        fps=10,
        steps=4,
        validations=2,
        samples=1,
        sample_steps=2,
        repeats=2,
        opening=Opening(model=replace(Opening().model, dim=32, layers=1, ffn=32), steps=3),
    )
