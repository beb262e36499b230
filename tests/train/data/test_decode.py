import struct

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from train.data.sources.decode import UnreadableVideo, decode_frames

CORNERS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]  # clockwise from the top left


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 40), st.integers(2, 60), st.sampled_from([1, 3, 8, 12, 24, 90]))
def test_frame_k_shows_time_k_over_fps(tmp_path, write_scenes, origin_of, length, rate, fps):
    video = write_scenes(tmp_path / "v.mov", [length], rate=rate)
    numbers = [origin_of(f)[1] for f in decode_frames(video, 32, 32, fps)]
    assert numbers == [k * rate // fps for k in range(length * fps) if k * rate < length * fps]


def test_no_rate_takes_every_frame(tmp_path, write_scenes, origin_of):
    video = write_scenes(tmp_path / "v.mov", [7, 4])
    frames = [origin_of(f) for f in decode_frames(video, 32, 32, 0)]
    assert frames == [(0, i) for i in range(7)] + [(1, i) for i in range(7, 11)]


def corners() -> np.ndarray:
    frame = np.zeros((40, 60, 3), dtype=np.uint8)
    frame[:20, :30], frame[:20, 30:], frame[20:, 30:], frame[20:, :30] = CORNERS
    return frame


@pytest.mark.parametrize(("height", "width"), [(40, 60), (20, 20), (10, 60), (64, 16), (80, 120)])
def test_a_frame_is_scaled_to_cover_and_cropped_at_its_centre(tmp_path, write_video, height, width):
    (frame,) = decode_frames(write_video(tmp_path / "v.mov", [corners()]), height, width, 0)
    assert frame.shape == (height, width, 3) and frame.flags.c_contiguous
    seen = [frame[y, x] for y, x in ((0, 0), (0, -1), (-1, -1), (-1, 0))]
    assert np.array_equal(seen, CORNERS)
    half = frame[height // 2 - 2 : height // 2 + 2, 0]
    assert np.array_equal(half[0], CORNERS[0]) and np.array_equal(half[-1], CORNERS[3])


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_frame_is_turned_upright(tmp_path, write_video, turns):
    """The rotation is in the file's track header, as phones write it: there, we put it by hand."""
    video = write_video(tmp_path / "v.mov", [corners()])
    cos, sin = [(1, 0), (0, -1), (-1, 0), (0, 1)][turns]
    data = bytearray(video.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(
        ">9i", cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30
    )
    video.write_bytes(data)
    (frame,) = decode_frames(video, 40, 40, 0)
    seen = [frame[y, x] for y, x in ((0, 0), (0, -1), (-1, -1), (-1, 0))]
    assert np.array_equal(seen, np.roll(CORNERS, -turns, axis=0))


@pytest.mark.parametrize("suffix", ["mkv", "avi"])
def test_a_title_in_another_encoding_is_no_matter(tmp_path, suffix):
    file = tmp_path / f"v.{suffix}"
    with av.open(str(file), "w", metadata_encoding="latin-1") as container:
        container.metadata["title"] = "caf\xe9"
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 40, 60, "bgr0"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(corners(), format="rgb24")))
        container.mux(stream.encode())
    assert b"caf\xe9" in file.read_bytes()
    (frame,) = decode_frames(file, 40, 60, 0)
    assert np.array_equal(frame, corners())


def test_other_text_that_is_not_utf8_makes_a_file_unreadable(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "open", lambda *_, **__: b"caf\xe9".decode())
    with pytest.raises(UnreadableVideo, match="not UTF-8: .*0xe9"):
        list(decode_frames(tmp_path / "v.mkv", 32, 32, 0))


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_unreadable_files_say_why(tmp_path, content):
    file = tmp_path / "v.mp4"
    file.write_bytes(content)
    with pytest.raises(UnreadableVideo, match=r"\w"):
        list(decode_frames(file, 32, 32, 0))
