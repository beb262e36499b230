"""Frames come at the times that the file gives them, and no faster than they can be true."""

from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from train.data.order.shots import BREAK
from train.data.sources.decode import UnreadableVideo, decode_changes, decode_frames
from train.data.sources.times import LONGEST, with_ends

MS = Fraction(1, 1000)


def plain(i: int) -> np.ndarray:
    """A frame that says which it is."""
    return np.full((32, 32, 3), 5 * i, np.uint8)


def numbers(video, fps) -> list[int]:
    return [int(frame[0, 0, 0]) // 5 for frame in decode_frames(video, 32, 32, fps)]


def breaks(video, fps) -> list[int]:
    """The frames before which the film has a break."""
    changes = [change for _, change in decode_changes(video, 32, 32, fps)]
    return [i for i, change in enumerate(changes) if change == BREAK]


@pytest.fixture
def film(tmp_path, write_film):
    """film([0, 100, 250], suffix): a video of plain frames at these times in ms."""

    def write(times, suffix="mkv", **options):
        codec = ("ffv1", "bgr0") if suffix == "mkv" else ("png", "rgb24")
        frames = [plain(i) for i in range(len(times))]
        return write_film(tmp_path / f"v.{suffix}", frames, *codec, times=times, **options)

    return write


@pytest.mark.parametrize("suffix", ["mkv", "mov"])
@pytest.mark.parametrize("fps", [5, 10, 24])
def test_a_rate_that_varies(film, suffix, fps):
    """Slow, fast, and still for seconds: the frame at k / fps is the last that has begun."""
    times = [0, 100, 150, 160, 200, 1200, 1210, 5000, 5100]
    video = film(times, suffix)
    wanted = [sum(t * fps <= 1000 * k for t in times) - 1 for k in range(round(5.2 * fps))]
    assert numbers(video, fps) == wanted
    assert numbers(video, 0) == list(range(9)) and breaks(video, fps) == []


@pytest.mark.parametrize("suffix", ["mkv", "mov"])
@pytest.mark.parametrize("jump", [3_600_000, 86_400_000])
@pytest.mark.parametrize("at", [1, 10, 19])
def test_a_jump_of_times_is_not_filled_and_is_a_break(film, suffix, jump, at):
    video = film([100 * i + (jump if i >= at else 0) for i in range(20)], suffix)
    assert numbers(video, 10) == list(range(20)) and breaks(video, 10) == [at]
    assert numbers(video, 0) == list(range(20)) and breaks(video, 0) == [at]


def test_a_break_is_kept_where_the_frame_after_it_is_too_short_to_be_shown(film):
    video = film([0, 150, 3_600_000, 3_600_010, 3_600_200])
    found = numbers(video, 10)
    assert 2 not in found and breaks(video, 10) == [found.index(3)]


@pytest.mark.parametrize(("still", "due"), [(LONGEST, [0] * 100 + [1]), (LONGEST + 0.1, [0, 1])])
def test_a_still_may_be_so_long(film, still, due):
    assert numbers(film([0, round(1000 * still)]), 10) == due


def test_a_film_may_begin_at_any_time(film):
    usual = [100 * i for i in range(9)]
    for begin in (700, 3_600_000):
        assert numbers(film([begin + t for t in usual]), 20) == numbers(film(usual), 20)


def test_what_an_edit_list_cuts_off_is_not_shown(film):
    """Frames at negative times in MOV: kept in the file, and cut off by its edit list."""
    video = film([100 * i for i in range(-5, 10)], "mov")
    assert b"elst" in video.read_bytes()
    assert numbers(video, 10) == numbers(video, 0) == list(range(5, 15))


def test_what_is_damaged_is_said_with_its_place(tmp_path, write_video):
    noise = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), np.uint8)
    whole = write_video(tmp_path / "v.mov", list(noise)).read_bytes()
    start = whole.index(b"mdat")  # frames lie behind it, one after another, about as long
    (tmp_path / "v.mov").write_bytes(
        whole[: start + 120_000] + bytes(40_000) + whole[start + 160_000 :]
    )
    with pytest.raises(UnreadableVideo, match=r"damaged \d\.\d s after it begins: Invalid data"):
        numbers(tmp_path / "v.mov", 10)


def test_of_a_file_that_was_cut_off_the_whole_frames_are_taken(tmp_path, write_film):
    """FFmpeg shows the last one of MPEG-2 too, in grey where it is missing, and says so."""
    noise = np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), np.uint8)
    video = write_film(tmp_path / "v.mpg", list(noise), "mpeg2video", "yuv420p", rate=25)
    whole = list(decode_frames(video, 64, 64, 0))
    assert len(whole) == 30
    video.write_bytes(video.read_bytes()[: video.stat().st_size * 6 // 10])
    with av.open(str(video)) as container:
        corrupt = [frame.is_corrupt for frame in container.decode(video=0)]
    assert corrupt == [False] * (len(corrupt) - 1) + [True]
    cut = list(decode_frames(video, 64, 64, 0))
    assert len(cut) == len(corrupt) - 1 > 5
    assert all(np.array_equal(a, b) for a, b in zip(cut, whole))


def ends(times, duration=0, corrupt=()) -> tuple[list[int], list[float], list[int]]:
    """Which frames at these times (in ms; None: without) are left, when they end, in ms, and where
    breaks are."""

    class Frame:
        time_base = MS

        def __init__(self, i, time):
            self.number, self.pts = i, time
            self.is_corrupt, self.duration = i in corrupt, duration

        @property
        def time(self):
            return None if self.pts is None else self.pts / 1000

    frames: Any = [Frame(i, time) for i, time in enumerate(times)]
    seen: list[Any] = list(with_ends(frames, 0.05))
    left = [frame.number for frame, *_ in seen]
    return left, [round(1000 * end) for _, end, _ in seen], [f.number for f, _, b in seen if b]


def test_frames_without_a_time_follow_the_one_before():
    assert ends([None] * 3)[1] == [50, 100, 150]
    assert ends([None] * 3, duration=70)[1] == [70, 140, 210]
    assert ends([5000, None, 5080, None, None, 5300])[1] == [50, 80, 110, 140, 300, 300 + 160]
    assert ends([None, 7000, 7100])[1] == [50, 150, 250]


def test_negative_times_are_times():
    assert ends([-300, -200, -150, 0])[1] == [100, 150, 300, 450]


def test_times_in_a_slightly_wrong_order_move_no_other():
    _, found, broken = ends([0, 100, 300, 200, 400, 500])
    assert (found, broken) == ([100, 300, 300, 400, 500, 600], [])


def test_one_wrong_time_moves_no_other():
    for wrong, breaks in ((3_600_000, []), (-3_600_000, [2, 3])):
        _, found, broken = ends([0, 100, wrong, 300, 400])
        assert (found, broken) == ([100, 200, 300, 400, 500], breaks)


@pytest.mark.parametrize("wrong", [1_400, 8_300, 9_900])
def test_one_time_too_far_ahead_is_not_filled_up_to(wrong):
    """Though a frame may be shown for that long."""
    for at in (2, 3, 5):
        times: list[int] = [100 * i for i in range(7)]
        times[at] = wrong + 100 * at
        _, found, broken = ends(times)
        assert (found, broken) == ([*[100 * i for i in range(1, 7)], found[-1]], [])
        assert found[-1] <= 700
    assert ends([0, 100, 200, 4000, 4100])[1][:4] == [100, 200, 4000, 4100]  # a still


def test_a_long_still_is_no_measure_of_the_frames_after_it():
    assert ends([0, 100, 8000, None, None])[1] == [100, 8000, 8100, 8200, 8300]


def test_after_times_that_begin_anew_the_film_goes_on():
    _, found, broken = ends([0, 1000, 2000, 0, 1000])
    assert (found, broken) == ([1000, 2000, 3000, 4000, 5000], [3])


@pytest.mark.parametrize("rate", [1e-9, 0.0, 1e9])
def test_an_average_over_a_jump_is_no_duration(rate):
    frames: Any = [av.VideoFrame(16, 16, "gray")]
    ((_, end, _),) = with_ends(frames, rate and 1 / rate)
    assert 0 < end <= LONGEST


def test_damaged_frames_are_left_out_at_a_break():
    left, found, broken = ends([0, 100, 200, 300, 400], corrupt=(0, 2, 4))
    assert (left, found, broken) == ([1, 3], [200, 400], [3])


def test_joined_mpeg_files_are_shown_one_after_the_other(tmp_path, write_film):
    frames = [plain(i) for i in range(50)]
    video = write_film(tmp_path / "v.mpg", frames, "mpeg2video", "yuv420p", rate=25)
    once = numbers(video, 25)
    video.write_bytes(video.read_bytes() * 2)
    assert len(once) == 50 and numbers(video, 25) == once * 2 and breaks(video, 25) == [50]
