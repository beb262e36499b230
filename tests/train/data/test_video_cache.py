import errno
import os
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from train.data.order.shots import BREAK
from train.data.sources import cache
from train.data.sources.cache import cached_video
from train.data.sources.decode import decode_frames

OPTIONS: Any = {"height": 32, "width": 32, "fps": 0}


@pytest.fixture
def video(tmp_path, write_scenes):
    return write_scenes(tmp_path / "v.mov", [30, 25])


def read_all(video, cache_dir, **options: Any):
    entry = cached_video(video, cache_dir, **OPTIONS, **options)
    return entry.read(0, entry.num_frames), entry.changes


def forbid_decoding(monkeypatch):
    def fail(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(cache, "decode_changes", fail)


def test_a_hit_equals_a_miss_and_the_video_bitwise(tmp_path, video, monkeypatch):
    missed = read_all(video, tmp_path / "cache")
    direct = np.stack(list(decode_frames(video, 32, 32, 0)))
    forbid_decoding(monkeypatch)
    hit = read_all(video, tmp_path / "cache")
    assert np.array_equal(missed[0], direct) and np.array_equal(hit[0], direct)
    assert missed[1] == hit[1]


def test_windows_are_slices(tmp_path, video):
    entry = cached_video(video, tmp_path / "cache", **OPTIONS)
    assert np.array_equal(entry.read(7, 5), entry.read(0, 55)[7:12])


def test_another_file_or_other_options_are_another_entry(tmp_path, video, write_scenes):
    first, _ = read_all(video, tmp_path / "cache")
    smaller = cached_video(video, tmp_path / "cache", height=16, width=32, fps=0)
    assert smaller.read(0, 1).shape == (1, 16, 32, 3)
    assert cached_video(video, tmp_path / "cache", height=32, width=32, fps=5).num_frames == 28
    write_scenes(video, [12])
    assert read_all(video, tmp_path / "cache")[0].shape[0] == 12 != first.shape[0]


def test_a_file_written_again_is_decoded_again(tmp_path, video, monkeypatch):
    read_all(video, tmp_path / "cache")
    os.utime(video, ns=(1, 1))
    forbid_decoding(monkeypatch)
    with pytest.raises(AssertionError, match="decoded again"):
        read_all(video, tmp_path / "cache")


def test_frames_of_another_decoding_are_not_read(tmp_path, video, monkeypatch):
    read_all(video, tmp_path / "cache")
    monkeypatch.setattr(cache, "DECODING", cache.DECODING - 1)
    forbid_decoding(monkeypatch)
    with pytest.raises(AssertionError, match="decoded again"):
        read_all(video, tmp_path / "cache")


def test_a_break_is_kept(tmp_path, write_film):
    frames = [np.full((32, 32, 3), 9, np.uint8)] * 4
    video = write_film(tmp_path / "v.mkv", frames, times=[0, 100, 90_000, 90_100])
    for _ in range(2):
        assert read_all(video, tmp_path / "cache")[1] == (0.0, BREAK, 0.0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_decode_leaves_nothing(tmp_path, video, error):
    def stop(n):
        if n == 40:
            raise error

    with pytest.raises(error):
        read_all(video, tmp_path / "cache", on_frame=stop)
    assert {p.suffix for p in (tmp_path / "cache").iterdir()} == {".lock"}
    assert len(read_all(video, tmp_path / "cache")[0]) == 55


def test_a_killed_decode_leaves_no_entry_that_is_believed(tmp_path, video):
    code = (
        "import time; from pathlib import Path; from train.data.sources.cache import cached_video\n"
        "def wait(n):\n"
        "    if n == 40: print('at 40', flush=True); time.sleep(60)\n"
        f"cached_video(Path({str(video)!r}), Path({str(tmp_path / 'cache')!r}), "
        "height=32, width=32, fps=0, on_frame=wait)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline() == b"at 40\n"
        child.send_signal(signal.SIGKILL)
    assert list((tmp_path / "cache").glob("*.tmp"))
    assert len(read_all(video, tmp_path / "cache")[0]) == 55
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_a_damaged_entry_is_decoded_again(tmp_path, video):
    whole, _ = read_all(video, tmp_path / "cache")
    (frames_file,) = (tmp_path / "cache").glob("*.frames")
    (index_file,) = (tmp_path / "cache").glob("*.json")
    for damage in (
        lambda: frames_file.write_bytes(frames_file.read_bytes()[:-1]),
        lambda: index_file.write_text('{"num_frames": 3'),
        frames_file.unlink,
    ):
        damage()
        assert np.array_equal(read_all(video, tmp_path / "cache")[0], whole)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_clear_line_and_no_entry(tmp_path, video, monkeypatch, code):
    def full(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(cache.os, "fsync", full)
        with pytest.raises(OSError, match=r"no space left .*v\.mov.*set cache_dir") as caught:
            read_all(video, tmp_path / "cache")
    assert caught.value.errno == code and "\n" not in str(caught.value)
    assert {p.suffix for p in (tmp_path / "cache").iterdir()} == {".lock"}


def test_processes_that_ask_together_decode_once(tmp_path, video):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from train.data.sources.cache import cached_video\n"
        "seen = []\n"
        "def on_frame(n): seen.append(n); time.sleep(0.02)\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        f"entry = cached_video(Path({str(video)!r}), Path({str(tmp_path / 'cache')!r}), "
        "height=32, width=32, fps=0, on_frame=on_frame)\n"
        "print(entry.num_frames, len(seen))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen([sys.executable, "-c", code], env=env, **pipes) for _ in range(2)]
    for child in children:
        assert child.stdout and child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin
        child.stdin.write("go\n")
        child.stdin.flush()
    said = sorted(child.communicate(timeout=60)[0].strip() for child in children)
    assert said == ["55 0", "55 55"]
