"""Clips filmed by ViZDoom itself, in two maps, few frames at a time."""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from train.data import VideoDataLoader
from train.data.doom import __main__ as command
from train.data.doom.film import Reel, film
from train.data.doom.walks import ACTIONS, FPS, HELD_OUT, MAPS, STILL, Walk
from train.data.sources.decode import decode_frames

FRAMES = 5


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three training clips and one held out, by the command, in two processes."""
    folder = tmp_path_factory.mktemp("doom") / "clips"
    assert run(folder, clips=3, validation_clips=1, processes=2) == 0
    return folder


def run(folder, **options):
    options = {"out": folder, "num_frames": FRAMES, "processes": 1} | options
    pairs = ((f"--{key.replace('_', '-')}", str(x)) for key, x in options.items())
    return command.main([*itertools.chain(*pairs)])


def videos(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.mkv"))


def pixels(file):
    return np.stack(list(decode_frames(file, 120, 160, 0)))


def test_no_map_is_in_both_splits():
    assert len(MAPS) == len(set(MAPS)) == 68 and len(HELD_OUT) == 8
    options = command.Options(out=command.Path("x"), clips=600, validation_clips=100)
    seen = {"train": set(), "validation": set()}
    for reel in command.plan(options):
        for file in reel.files:
            seen[file.parent.name].add(reel.map)
            assert file.stem.endswith(reel.map.replace("/", "-"))
    assert seen["validation"] == set(HELD_OUT) and seen["train"] == set(MAPS) - set(HELD_OUT)


def test_a_clip_s_number_says_what_it_is_whatever_else_is_filmed():
    few, many = (
        {
            file: (reel.map, reel.walk, i)
            for reel in command.plan(command.Options(out=command.Path("x"), clips=n))
            for i, file in enumerate(reel.files)
        }
        for n in (70, 1000)
    )
    assert few.items() <= many.items() and len(many) == 1000 + 512
    assert len(set(many.values())) == len(many)


def test_what_was_filmed_is_whole_captioned_and_to_be_trained_on(clips):
    names = [f"train/00000{i}-freedoom2-MAP0{i + 1}.mkv" for i in range(3)]
    assert videos(clips) == [*names, "validation/000000-freedoom2-MAP05.mkv"]
    for name in videos(clips):
        film = pixels(clips / name)
        assert film.shape == (FRAMES, 120, 160, 3) and film.std() > 5
        assert (np.abs(np.diff(film.astype(int), axis=0)).mean((1, 2, 3)) >= STILL).all()
        caption = (clips / name).with_suffix(".txt").read_text()
        said = caption.strip().removeprefix("the camera ").split(" past ")[0]
        assert said in ACTIONS
    assert not list(clips.rglob("*.tmp"))
    config = VideoDataLoader.Config(
        path=str(clips), num_frames=FRAMES, height=30, width=40, cache_dir=str(clips / "cache")
    )
    train, held = (config.build(split=split) for split in ("train", "validation"))
    assert len(train.clips) == 3 and len(held.clips) == 1
    (batch,) = held
    assert batch["video"].shape == (1, 3, FRAMES, 30, 40) and batch["context"].any()
    assert not any(torch.equal(next(iter(train))["video"], batch["video"]) for _ in range(3))


def test_a_run_goes_on_and_the_same_number_gives_the_same_pixels(clips, tmp_path, caplog):
    """Whatever was filmed before in the same process, and by whichever process."""
    first = {name: pixels(clips / name) for name in videos(clips)}
    assert run(tmp_path / "again", clips=1, validation_clips=0) == 0
    assert run(tmp_path / "again", clips=3, validation_clips=1, processes=2) == 0
    assert "3 clips filmed" in caplog.messages[-1], "one was there"
    again = {name: pixels(tmp_path / "again" / name) for name in videos(tmp_path / "again")}
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    with Walk(MAPS[1], 120) as walk:
        list(walk.takes(7, 1, 2))
        (take,) = walk.takes(0, 1, FRAMES)
    assert np.array_equal(take.frames, first[videos(clips)[1]])


def test_a_clip_that_is_there_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("train.data.doom.film.signal.signal", lambda *_: None)
    files = tmp_path / "a.mkv", tmp_path / "b.mkv"
    files[0].write_text("filmed before")
    assert film(Reel(MAPS[3], 2, 120, 2, files)) == 1
    assert files[0].read_text() == "filmed before"
    with Walk(MAPS[3], 120) as walk:
        _, second = walk.takes(2, 2, 2)
    assert np.array_equal(pixels(files[1]), second.frames)
    assert files[1].with_suffix(".txt").read_text() == second.caption + "\n"


def test_takes_of_a_walk_and_walks_differ_and_nothing_else_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Walk(MAPS[32], 120) as walk:
        takes = [*walk.takes(0, 2, 2), *walk.takes(1, 1, 2)]
        (first,) = walk.takes(0, 1, 2)
    assert np.array_equal(first.frames, takes[0].frames) and first.caption == takes[0].caption
    for a, b in itertools.combinations(takes, 2):
        assert not np.array_equal(a.frames, b.frames)
    assert takes[0].frames.dtype == np.uint8
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"clips": -1}, "clips=-1, validation_clips=512 and processes=1 must not be negative"),
        ({"num_frames": 1}, "num_frames=1 at least 2"),
        ({"clips": 0, "validation_clips": 0}, "and some clips wanted"),
    ],
)
def test_bad_options_are_one_line_before_any_work(tmp_path, caplog, changes, said):
    assert run(tmp_path / "out", **changes) == 1 and not (tmp_path / "out").exists()
    assert said in caplog.messages[-1] and "\n" not in caplog.messages[-1]


def test_a_folder_of_other_clips_is_refused(clips, caplog):
    before = {p: p.stat().st_mtime_ns for p in clips.rglob("*")}
    assert run(clips, num_frames=FRAMES + 1) == 1
    assert "num_frames is 5 there and 6 here" in caplog.messages[-1]
    assert before == {p: p.stat().st_mtime_ns for p in clips.rglob("*")}


def test_without_vizdoom_it_says_what_to_install(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(command.sys.modules, "vizdoom", None)
    assert run(tmp_path / "out") == 1 and "flexsparse[doom]" in caplog.messages[-1]


def test_ctrl_c_keeps_what_is_complete(tmp_path, monkeypatch, caplog):
    """In threads, so that the interruption can be put after the first walk."""
    real, done = command.film, []

    def filmed(reel):
        if done:
            raise KeyboardInterrupt
        done.append(real(reel))
        return done[-1]

    monkeypatch.setattr(command, "ProcessPoolExecutor", lambda n, _: ThreadPoolExecutor(1))
    monkeypatch.setattr(command, "film", filmed)
    monkeypatch.setattr("train.data.doom.film.signal.signal", lambda *_: None)
    assert run(tmp_path / "out", clips=3, validation_clips=0) == 130
    assert "start again to go on" in caplog.messages[-1]
    assert len(videos(tmp_path / "out")) == sum(done) == 1
    assert float(FPS) == 17.5 and os.path.getsize(tmp_path / "out" / "_doom.json")
