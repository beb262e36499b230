"""Processes have the same clips, or say that they have not; in all their groups they wait alike."""

import json
from pathlib import Path

import pytest
from trainer_runs import finish, start


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tmp_path_factory.mktemp("alike")


@pytest.fixture
def ranks(made, write_scenes):
    """What alike_ranks.py found, by rank."""
    if not (made / "rank0.json").exists():
        for name in ("videos0/a", "videos0/b", "videos1/a"):
            write_scenes(made / f"{name}.mov", [30])
        (made / "videos1" / "b.mov").write_bytes(b"no video")
        for i, (good, bad) in enumerate(("ab", "ba")):
            write_scenes(made / f"other{i}" / f"{good}.mov", [30])
            (made / f"other{i}" / f"{bad}.mov").write_bytes(b"no video")
        finish(start(str(Path(__file__).with_name("alike_ranks.py")), str(made), ranks=2))
    return [json.loads((made / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_who_has_other_videos_ends_the_run_on_all_in_a_line(ranks):
    assert [rank["same"] for rank in ranks] == ["6", "6"]
    for i, rank in enumerate(ranks):
        (line,) = rank["own"].splitlines()
        assert f"videos{i} has 6 train clips on rank 0, and 3 train clips (1 videos" in line
        assert "left out, b.mov first: " in line and " on rank 1: give all" in line


def test_who_could_not_read_another_video_of_the_same_length_ends_it_as_well(ranks):
    for rank in ranks:
        assert "b.mov first: " in rank["other"] and "a.mov first: " in rank["other"]
        assert " on rank 1: give all" in rank["other"] and "\n" not in rank["other"]


def test_those_that_share_a_clip_train_and_validate_on_that_of_the_first(ranks):
    first, second = ranks
    assert first["damaged"] == first["straight"] == second["straight"]
    assert second["damaged"] == first["damaged"]


def test_in_every_group_they_wait_as_long_as_is_said(ranks):
    assert "rank 0 of 2 waited for the others in a group" in ranks[0]["waited"]
    assert "parallel.timeout_seconds, 1:" in ranks[0]["waited"]
