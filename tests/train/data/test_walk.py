import logging
import os

import pytest

from train.data.sources.folder import list_videos
from train.data.sources.walk import files_below


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def below(tmp_path, caplog):
    """below(): names of the .mp4 files found below `data`, and what the log says of the others."""

    def find() -> tuple[list[str], list[str]]:
        data = tmp_path / "data"
        caplog.clear()
        with caplog.at_level(logging.INFO, "train.data"):
            logging.getLogger("train.data").addHandler(caplog.handler)
            found = files_below(data, (".mp4",))
            logging.getLogger("train.data").removeHandler(caplog.handler)
        return [p.relative_to(data).as_posix() for p in found], sorted(set(caplog.messages))

    return find


def test_folders_behind_links_are_searched_once_and_loops_end(tmp_path, below):
    data, disk = tmp_path / "data", tmp_path / "disk"
    touch(data / "here" / "a.mp4"), touch(disk / "b.MP4"), touch(disk / "deep" / "c.mp4")
    (data / "there").symlink_to(disk)
    (data / "too").symlink_to(disk / "deep")
    (data / "again").symlink_to(data / "here")
    (disk / "round").symlink_to(disk)
    (disk / "back").symlink_to(data / "here")
    (data / "here" / "up").symlink_to(data)
    (data / "out").symlink_to(tmp_path)
    touch(tmp_path / "beside.mp4")
    found, said = below()
    assert found == ["here/a.mp4", "there/b.MP4", "there/deep/c.mp4"]
    assert [line.split(":")[0] for line in said] == [
        f"left out {data / 'here' / 'up'}",
        f"left out {data / 'out'}",
    ]
    assert [p.name for p, _ in list_videos(data)] == ["a.mp4", "b.MP4", "c.mp4"]


def test_a_file_with_several_names_is_there_once_by_its_own(tmp_path, below):
    data = tmp_path / "data"
    own = touch(data / "pool" / "a.mp4")
    touch(tmp_path / "elsewhere" / "b.mp4")
    for name in ("best", "z"):
        (data / name).mkdir()
        (data / name / "a.mp4").symlink_to(own)
        (data / name / "b.mp4").symlink_to(tmp_path / "elsewhere" / "b.mp4")
    found, said = below()
    assert found == ["best/b.mp4", "pool/a.mp4"]
    assert said == [
        f"left out {data / 'best/a.mp4'}: it is a link to {own}, which is there already",
        f"left out {data / 'z/a.mp4'}: it is a link to {own}, which is there already",
        f"left out {data / 'z/b.mp4'}: it is a link to {data / 'best/b.mp4'}, which is there "
        "already",
    ]


def test_hidden_folders_are_named_and_left_out(tmp_path, below):
    """As of git-annex: the files are in .git, and links to them where they belong."""
    data = tmp_path / "data"
    kept = touch(data / ".git" / "annex" / "objects" / "x.mp4")
    (data / "a.mp4").symlink_to(kept)
    touch(data / ".ipynb_checkpoints" / "a-checkpoint.mp4")
    found, said = below()
    assert found == ["a.mp4"]
    assert said == [f"left out hidden folders in {data}: .git, .ipynb_checkpoints"]


def test_links_that_lead_nowhere_are_there(tmp_path, below):
    data = tmp_path / "data"
    data.mkdir()
    (data / "gone.mp4").symlink_to("nowhere")
    (data / "loop.mp4").symlink_to("loop.mp4")
    assert below() == (["gone.mp4", "loop.mp4"], [])


def test_a_folder_that_may_not_be_read_is_named(tmp_path, below, monkeypatch):
    data, real = tmp_path / "data", os.scandir
    touch(data / "a.mp4"), touch(data / "shut" / "b.mp4")

    def scandir(path):
        if os.fspath(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert below() == (["a.mp4"], [f"left out folder {data / 'shut'}: Permission denied"])
