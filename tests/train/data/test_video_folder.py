import errno
import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from train.data import VideoFolder
from train.data.sources import video_folder


def open_folder(folder, **options: Any) -> VideoFolder:
    """Clips of 8 frames of 32x32, with a cache beside the folder."""
    usual = {"num_frames": 8, "height": 32, "width": 32, "cache_dir": folder.parent / "cache"}
    return VideoFolder(folder, **{**usual, **options})


@pytest.fixture
def folder(tmp_path, write_scenes):
    """Two videos of several scenes each, with room for a cache beside them."""
    write_scenes(tmp_path / "videos" / "a.mov", [20, 9, 33])
    write_scenes(tmp_path / "videos" / "b.mov", [4, 26])
    (tmp_path / "videos" / "a.txt").write_text("caption of a")
    return tmp_path / "videos"


def clips_of(folder, split, origin_of, **options):
    """Each clip as (caption, its frames' origins)."""
    for clip in open_folder(folder, split=split, **options):
        frames = clip["video"].permute(1, 2, 3, 0).numpy()
        yield clip["caption"], [origin_of(frame) for frame in frames]


def test_clips_are_consecutive_frames_of_one_shot(folder, origin_of):
    for split in ("train", "validation"):
        clips = list(clips_of(folder, split, origin_of, stride=1))
        assert len(clips) >= 3
        for _, origins in clips:
            scenes, numbers = zip(*origins, strict=True)
            assert len(set(scenes)) == 1
            assert list(numbers) == list(range(numbers[0], numbers[0] + 8))


def test_splits_share_no_frame_and_validation_is_the_tail(folder, origin_of):
    seen = {
        split: {(caption, *o) for caption, origins in clips for o in origins}
        for split in ("train", "validation")
        for clips in [list(clips_of(folder, split, origin_of, stride=1))]
    }
    assert not seen["train"] & seen["validation"]
    whole = {("caption of a", 0, i) for i in range(20)} | {
        ("caption of a", 1, i) for i in range(20, 29)
    }
    whole |= {("caption of a", 2, i) for i in range(29, 62)} | {("", 1, i) for i in range(4, 30)}
    assert seen["train"] | seen["validation"] == whole  # all but the scene shorter than a clip
    assert {("caption of a", 2, i) for i in range(54, 62)} <= seen["validation"]


def test_clips_have_the_promised_form(folder):
    clips = open_folder(folder, num_frames=5, height=24, width=40)
    video = clips[0]["video"]
    assert video.shape == (3, 5, 24, 40) and video.dtype == torch.uint8 and video.is_contiguous()


@pytest.fixture
def log(caplog):
    """What train.data logs, also once the console has taken over the package's log."""
    logger = logging.getLogger("train.data")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, "train.data"):
        yield caplog
    logger.removeHandler(caplog.handler)


def test_bad_files_are_skipped_named_and_counted(folder, write_scenes, log):
    (folder / "broken.mp4").write_bytes(b"\x00" * 5000)
    (folder / "cut_off.mov").write_bytes((folder / "a.mov").read_bytes()[:3000])
    write_scenes(folder / "short.mov", [7])
    clips = open_folder(folder)
    assert [p.name for p, _ in clips.skipped] == ["broken.mp4", "cut_off.mov", "short.mov"]
    assert "7 frames" in clips.skipped[-1][1] and "takes 8" in clips.skipped[-1][1]
    for name in ("broken.mp4", "cut_off.mov", "short.mov"):
        assert any(f"left out {folder / name}" in message for message in log.messages)
    assert "from 2 videos, 3 videos left out" in log.messages[-1]
    assert len(clips) == len(open_folder(folder, cache_dir=folder.parent / "new"))


@pytest.fixture
def write_jump(folder, write_film):
    """write_jump("v.mkv", 12): 30 frames of one scene, an hour between the 12th and the next."""

    def write(name, at):
        times = [100 * i + (3_600_000 if i >= at else 0) for i in range(30)]
        frames = [np.full((32, 32, 3), i, np.uint8) for i in range(30)]
        return write_film(folder / name, frames, times=times)

    return write


def test_no_clip_is_across_a_jump_of_times_and_the_log_says_so(folder, write_jump, log):
    file = write_jump("v.mkv", 12)
    clips = open_folder(folder, fps=10, stride=1, holdout=0.0)
    jumped = [c for c in clips.clips if c.video.num_frames == 30 and c.caption == ""]
    found = {c.start for c in jumped if c.video.path == jumped[-1].video.path}
    assert found == {*range(5), *range(12, 23)}
    assert f"{file}: its times jump, or frames are damaged (1 times): each ends a shot" in (
        log.messages
    )
    (short,) = open_folder(folder, fps=10, num_frames=20, stride=1).skipped[-1:]
    assert short[0] == file and "18 frames" in short[1] and "its times jump" in short[1]


def test_what_macos_leaves_beside_a_video_is_no_video_and_no_caption(folder):
    (folder / "._a.mov").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(4000))
    (folder / "._a.txt").write_bytes(b"\0\5\x16\7\xff")
    clips = open_folder(folder)
    ((file, reason),) = clips.skipped
    assert file == folder / "._a.mov" and "macOS" in reason
    assert {clip["caption"] for clip in clips} == {"caption of a", ""}


def test_a_file_that_metadata_names_may_be_missing(folder):
    (folder / "metadata.csv").write_text("file_name,text\na.mov,one\ngone.mov,two\n")
    clips = open_folder(folder)
    assert clips.skipped == [(folder / "gone.mov", "there is no such file")]
    assert {clip["caption"] for clip in clips} == {"one"}


def test_paths_that_lead_nowhere_are_skipped_named_and_counted(folder, log):
    (folder / "loop.mov").symlink_to("loop.mov")
    (folder / "gone.mov").symlink_to("nowhere")
    (folder / "long.mov").symlink_to("x" * 300)
    os.mkfifo(folder / "pipe.mov")
    skipped = {p.name: reason for p, reason in open_folder(folder).skipped}
    assert sorted(skipped) == ["gone.mov", "long.mov", "loop.mov", "pipe.mov"]
    assert "symbolic links" in skipped["loop.mov"] and "too long" in skipped["long.mov"]
    assert "no such file" in skipped["gone.mov"] and "regular" in skipped["pipe.mov"]
    assert "from 2 videos, 4 videos left out" in log.messages[-1]


@pytest.mark.parametrize("name", ["a\0.mov", "x" * 300 + ".mov", "deep", "a.mov/b.mov"])
def test_names_in_metadata_that_are_no_file_are_skipped(folder, name):
    (folder / "deep").mkdir()
    rows = [{"file_name": n, "text": "one"} for n in ("a.mov", name)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [p for p, _ in open_folder(folder).skipped] == [folder / name]


def test_a_video_that_may_not_be_read_is_skipped(folder, monkeypatch):
    real = Path.stat

    def stat(path, **options):
        if path.name == "b.mov":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert open_folder(folder).skipped == [(folder / "b.mov", "Permission denied")]


def test_no_clip_left_is_an_error_with_the_numbers(folder):
    with pytest.raises(ValueError, match="no train clip: 2 of 2 videos.*33 frames.*34 are due"):
        open_folder(folder, num_frames=34)
    with pytest.raises(ValueError, match="no validation clip: 0 of 2.*33 frames.*40 are due"):
        open_folder(folder, num_frames=20, split="validation")


@pytest.mark.parametrize("bad", [{"num_frames": 0}, {"height": -1}, {"fps": -1}, {"holdout": 1.0}])
def test_bad_options_are_refused_before_any_work(tmp_path, bad):
    with pytest.raises(ValueError, match=str(*bad)):
        open_folder(tmp_path / "nowhere", **bad)


def test_a_clip_is_the_same_whatever_else_is_asked(folder):
    long = open_folder(folder, num_frames=12, stride=1)
    short = open_folder(folder, num_frames=6, stride=1)
    assert np.array_equal(long[0]["video"][:, :6], short[0]["video"])


def test_splits_in_subfolders_are_taken_whole(tmp_path, write_scenes, origin_of):
    for name in ("train", "validation"):
        write_scenes(tmp_path / "videos" / name / "a.mov", [20, 9] if name == "train" else [30])
    wanted = {"train": set(range(29)), "validation": set(range(30))}
    for split, frames in wanted.items():
        clips = clips_of(tmp_path / "videos", split, origin_of, stride=1)
        assert {number for _, origins in clips for _, number in origins} == frames


def test_videos_are_decoded_at_the_same_time_in_the_order_of_the_list(tmp_path, write_scenes):
    """Each video waits for the other to have begun: one after another they would wait for ever."""
    for name in ("a", "b"):
        write_scenes(tmp_path / "videos" / f"{name}.mov", [20])
    begun = threading.Barrier(2, timeout=20)
    real = video_folder.cached_video

    def meet(file, *args, **options):
        begun.wait()
        return real(file, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_folder, "cached_video", meet)
        patch.setattr(video_folder.os, "cpu_count", lambda: 2)
        together = open_folder(tmp_path / "videos")
    assert [c.video.path for c in together.clips] == [
        c.video.path for c in open_folder(tmp_path / "videos").clips
    ]


def test_ctrl_c_leaves_no_thread_decoding(tmp_path, write_scenes):
    for name in ("a", "b", "c"):
        write_scenes(tmp_path / "videos" / f"{name}.mov", [60])
    real = video_folder.cached_video

    def slow(file, cache, on_frame, **options):
        def wait(n):
            time.sleep(0.1)  # 6 seconds for a video
            on_frame(n)

        return real(file, cache, on_frame=wait, **options)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    others = {*threading.enumerate()}  # Inductor's, where a test has compiled in this process
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(video_folder, "cached_video", slow)
        patch.setattr(video_folder, "wait", interrupt)
        open_folder(tmp_path / "videos")
    assert time.monotonic() - began < 5
    assert not [t for t in {*threading.enumerate()} - others if "ThreadPool" in t.name]
    assert len(open_folder(tmp_path / "videos")) > 0
