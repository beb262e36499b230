"""What a file says of its pictures is obeyed: their pixels, their orientation, their streams."""

import struct
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from train.data.sources.decode import UnreadableVideo, decode_frames, video_size

CORNERS = np.array([[(250, 0, 0), (0, 250, 0)], [(0, 0, 250), (250, 250, 0)]], np.uint8)


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    """Each quarter in a colour of its own."""
    return CORNERS.repeat(height // 2, axis=0).repeat(width // 2, axis=1)


def corners_of(frame: np.ndarray) -> list:
    return frame[::, [1, -2]][[1, -2]].round(-1).tolist()


def of_pixels(ratio):
    def setup(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(ratio)

    return setup


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "mp4"), ("libx264", "avi")])
@pytest.mark.parametrize(("ratio", "size"), [("2", (40, 120)), ("1/2", (80, 60))])
def test_pixels_that_are_not_square_are_made_so(tmp_path, write_film, codec, suffix, ratio, size):
    lossless: Any = {"setup": of_pixels(ratio), "options": {"qp": "0"}}
    frames = [picture()] * 3
    video = write_film(tmp_path / f"v.{suffix}", frames, codec, "yuv444p", **lossless)
    assert video_size(video) == size
    (frame, *_) = decode_frames(video, *size, 0)
    assert corners_of(frame) == CORNERS.tolist()  # nothing is cropped


def test_the_container_s_word_on_pixels_counts_more_than_the_codec_s(tmp_path, write_film):
    """So FFmpeg has it; a remuxer mends a wrong ratio in the header alone."""
    video = write_film(tmp_path / "v.mp4", [picture()], "libx264", "yuv444p", setup=of_pixels(2))
    data = bytearray(video.read_bytes())
    pasp = data.index(b"pasp") + 4
    assert struct.unpack_from(">2I", data, pasp) == (2, 1)
    struct.pack_into(">2I", data, pasp, 3, 1)
    video.write_bytes(data)
    assert video_size(video) == (40, 180)


def test_pictures_of_absurd_shape_are_refused_before_they_are_made(tmp_path, write_video):
    video = write_video(tmp_path / "v.mov", [np.zeros((2, 400, 3), np.uint8)])
    with pytest.raises(UnreadableVideo, match="2x400: cropped to 64x64.*63 of 64"):
        next(decode_frames(video, 64, 64, 0))


@pytest.mark.parametrize(("a", "b"), [(1, 0), (0, 1), (-1, 0), (0, -1)])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("scale", [1 << 16, 3 << 15])
def test_all_turns_and_flips(tmp_path, write_film, a, b, sign, scale):
    """(x, y) is shown at (a x + c y, b x + d y): each point of the picture is followed there."""
    c, d = -sign * b, sign * a
    matrix = [v * scale for v in (a, b, 0, c, d, 0, 0, 0)] + [1 << 30]
    video = write_film(
        *(tmp_path / "v.mov", [picture()], "png", "rgb24"),
        setup=lambda stream: stream.set_display_matrix(matrix),
    )
    shown = (40, 60) if a else (60, 40)
    assert video_size(video) == shown
    (frame,) = decode_frames(video, *shown, 0)
    for y, x in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        at = (d * y + b * x) > 0, (a * x + c * y) > 0
        assert corners_of(frame)[at[0]][at[1]] == CORNERS[int(y > 0), int(x > 0)].tolist()


@pytest.mark.parametrize("degrees", [45, 20, 1])
def test_turns_that_are_no_quarters(tmp_path, write_film, degrees):
    video = write_film(
        *(tmp_path / "v.mov", [picture()], "png", "rgb24"),
        setup=lambda stream: stream.set_display_rotation(degrees),
    )
    if degrees == 1:
        assert corners_of(next(decode_frames(video, 40, 60, 0))) == CORNERS.tolist()
    else:
        with pytest.raises(UnreadableVideo, match="neither upright nor by quarter turns"):
            next(decode_frames(video, 40, 60, 0))


def test_pixels_are_stretched_before_the_picture_is_turned(tmp_path, write_film):
    def setup(stream):
        of_pixels(2)(stream)
        stream.set_display_rotation(90)

    video = write_film(tmp_path / "v.mp4", [picture()], "libx264", "yuv444p", setup=setup)
    assert video_size(video) == (120, 40)


def test_one_picture_is_made_of_interlaced_lines(tmp_path, write_film):
    """A bar that jumps between the fields: the file has it at both places, one is seen."""
    frames = []
    for i in range(5):
        frame = np.zeros((64, 64, 3), np.uint8)
        frame[::2, 8 * i : 8 * i + 8] = 200
        frame[1::2, 8 * i + 12 : 8 * i + 20] = 200
        frames.append(frame)
    options: Any = {"rate": 25, "options": {"qp": "0", "x264-params": "tff=1"}}
    video = write_film(tmp_path / "v.mp4", frames, "libx264", "yuv444p", **options)
    shown = list(decode_frames(video, 64, 64, 0))
    assert len(shown) == 5
    for frame in shown[1:-1]:  # the filter looks at the one before and the one after
        bright = frame[8:-8, :, 1] > 100
        assert (bright == bright[0]).all() and bright[0].sum() == 8
    assert len(list(decode_frames(video, 64, 64, 50))) == 10  # its times are the file's


def test_progressive_frames_are_left_as_they_are(tmp_path, write_film):
    lines = picture()
    lines[::2] = 0
    (frame,) = decode_frames(write_film(tmp_path / "v.mkv", [lines]), 40, 60, 0)
    assert np.array_equal(frame, lines)


def test_what_is_transparent_is_black_in_webm_too(tmp_path, write_film):
    clear = np.dstack([picture(), np.full((40, 60), 255, np.uint8)])
    clear[:20, :30, 3] = 0
    video = write_film(tmp_path / "v.webm", [clear] * 3, "libvpx-vp9", "yuva420p")
    frames = list(decode_frames(video, 40, 60, 0))
    assert len(frames) == 3 and video_size(video) == (40, 60)
    assert all(frame[4:16, 4:26].max() == 0 for frame in frames)
    assert all(frame[24:, 34:].max() > 100 for frame in frames)


@pytest.mark.parametrize("codec, form, suffix", [("png", "rgba", "mov"), ("ffv1", "bgra", "mkv")])
def test_what_is_transparent_is_black(tmp_path, write_film, codec, form, suffix):
    clear = np.dstack([picture(), np.full((40, 60), 255, np.uint8)])
    clear[:20, :30, 3], clear[20:, 30:, 3] = 0, 51
    video = write_film(tmp_path / f"v.{suffix}", [clear], codec, form)
    (frame,) = decode_frames(video, 40, 60, 0)
    wanted = CORNERS.copy()
    wanted[0, 0], wanted[1, 1] = 0, CORNERS[1, 1] // 5
    assert corners_of(frame) == wanted.tolist()


@pytest.mark.parametrize("usual", ["yuv444p", "yuv422p", "yuv420p"])
@pytest.mark.parametrize("deep", ["10le", "12le"])
def test_deep_pixels_are_as_near_as_those_of_8_bits(tmp_path, write_film, usual, deep):
    error = {}
    for form in (usual, usual + deep):
        video = write_film(tmp_path / f"{form}.mkv", [picture()], "ffv1", form)
        (frame,) = decode_frames(video, 40, 60, 0)
        error[form] = np.abs(frame.astype(int) - picture())[2:16, 2:26].max()
    assert error[usual + deep] <= error[usual]


@pytest.mark.parametrize("matrix", [1, 5])  # BT.709 and BT.601
@pytest.mark.parametrize("full", [False, True])
def test_colours_are_those_that_the_file_names(tmp_path, write_film, matrix, full):
    def setup(stream):
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 1 + full

    r, b = {1: (0.2126, 0.0722), 5: (0.299, 0.114)}[matrix]
    color = np.array([200, 90, 40])
    luma = color @ [r, 1 - r - b, b]
    planes = [luma, (40 - luma) / (2 * (1 - b)), (200 - luma) / (2 * (1 - r))]
    y, u, v = planes if full else (16 + luma * 219 / 255, *(c * 224 / 255 for c in planes[1:]))
    yuv = np.stack([np.full((40, 60), round(c)) for c in (y, u + 128, v + 128)]).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(yuv, format="yuv444p")
    frame.colorspace, frame.color_range = matrix, 1 + full
    options: Any = {"setup": setup, "options": {"qp": "0"}}
    video = write_film(tmp_path / "v.mp4", [frame], "libx264", "yuv444p", **options)
    (seen,) = decode_frames(video, 40, 60, 0)
    assert np.abs(seen[20, 30].astype(int) - color).max() <= 3


def two_streams(path, small: int, large: int, default: str = ""):
    """Two films of plain pictures of these greens; `default` is the name of the one marked so."""
    with av.open(str(path), "w") as container:
        streams = []
        for name, side, green in (("small", 32, small), ("large", 64, large)):
            stream: Any = container.add_stream("ffv1", rate=10)
            stream.height = stream.width = side
            stream.pix_fmt = "bgr0"
            if name == default:
                stream.disposition = Disposition.default
            streams.append((stream, np.full((side, side, 3), (0, green, 0), np.uint8)))
        for _ in range(3):
            for stream, frame in streams:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        for stream, _ in streams:
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("default", "seen"), [("", 200), ("small", 90), ("large", 200)])
def test_the_default_stream_is_the_film_else_the_largest(tmp_path, default, seen):
    video = two_streams(tmp_path / "v.mkv", 90, 200, default)
    frames = list(decode_frames(video, 32, 32, 0))
    assert len(frames) == 3 and (frames[0][..., 1] == seen).all()


def with_cover(path, film: bool, marked: bool = True):
    """A picture, white and marked as a cover or not, and a black film or sound."""
    with av.open(str(path), "w") as container:
        cover: Any = container.add_stream("mjpeg", rate=10)
        cover.height, cover.width, cover.pix_fmt = 80, 80, "yuvj420p"
        if marked:
            cover.disposition = Disposition.attached_pic
        stream: Any = container.add_stream("libx264" if film else "aac", rate=10 if film else 8000)
        if film:
            stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        white = np.full((80, 80, 3), 255, np.uint8)
        container.mux(cover.encode(av.VideoFrame.from_ndarray(white, format="rgb24")))
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            if not film:
                silence = np.zeros((1, 1024), np.float32)
                frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
                frame.sample_rate = 8000
            container.mux(stream.encode(frame))
        for each in (cover, stream):
            container.mux(each.encode())
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("marked", [True, False])
def test_a_cover_is_not_the_film(tmp_path, suffix, marked):
    frames = list(decode_frames(with_cover(tmp_path / f"v.{suffix}", True, marked), 32, 32, 0))
    assert len(frames) == 4 and frames[0].max() < 10


def test_a_cover_alone_is_not_the_film(tmp_path):
    with pytest.raises(UnreadableVideo, match="only pictures are covers"):
        next(decode_frames(with_cover(tmp_path / "song.mp4", film=False), 32, 32, 0))


def test_sound_alone_is_no_film(tmp_path):
    file = tmp_path / "v.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(UnreadableVideo, match="no video stream"):
        next(decode_frames(file, 32, 32, 0))


def test_a_codec_that_nobody_knows_is_named_as_the_reason(tmp_path, write_video):
    video = write_video(tmp_path / "v.mov", [picture()])
    video.write_bytes(video.read_bytes().replace(b"png ", b"zzzz"))
    with pytest.raises(UnreadableVideo, match="no decoder"):
        next(decode_frames(video, 40, 60, 0))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"/annex/objects/SHA256E-s9--0.mp4\n", "git annex get"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(4000), "macOS"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"no video at all" * 100, "Invalid data"),
    ],
)
def test_what_lies_in_the_place_of_a_video_is_named(tmp_path, content, says):
    (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(UnreadableVideo, match=says):
        next(decode_frames(tmp_path / "v.mp4", 32, 32, 0))


@pytest.mark.parametrize("left", [0.01, 0.5, 0.95])
def test_a_film_that_was_cut_off_before_its_index_says_so(tmp_path, write_video, left):
    noise = np.random.default_rng(0).integers(0, 255, (9, 40, 60, 3), np.uint8)
    video = write_video(tmp_path / "v.mov", list(noise))
    whole = video.read_bytes()
    index = whole.index(b"moov") - 4
    for kept in (round(left * index), index):
        video.write_bytes(whole[:kept])
        with pytest.raises(UnreadableVideo, match="cut off before the index"):
            next(decode_frames(video, 40, 60, 0))
    frames = whole.index(b"mdat") + 4
    video.write_bytes(whole[:frames] + bytes(index - frames) + whole[index:])
    with pytest.raises(UnreadableVideo, match="Invalid data"):
        next(decode_frames(video, 40, 60, 0))
