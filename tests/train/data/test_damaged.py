"""Clips that cannot be read: others of their size take their places, and nothing else moves."""

import errno
import itertools
import logging
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.data import ClipStream, VideoDataLoader
from train.data.order.damaged import Damage, DamagedClipError, DamagedDataError, reading


class Holed:
    """The clips 0 .. n - 1, three to a file, of which some cannot be read."""

    def __init__(self, n, bad):
        self.n, self.bad = n, bad

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index in self.bad:
            raise DamagedClipError(Path(f"{index // 3}"), f"clip {index}")
        return index


def steps(clips, world, batch, start, count, **options):
    """What ranks take in turn, and their notes."""
    taken, notes = [], []
    for rank in range(world):
        stream = ClipStream(clips, batch_size=batch, rank=rank, world_size=world, **options)
        stream.start = start
        taken.append(list(itertools.islice(stream, count * batch)))
        notes += stream.notes()
    order = [x for k in range(count) for t in taken for x in t[k * batch : (k + 1) * batch]]
    return order, sorted(notes)


@given(st.integers(6, 30), st.data(), st.sampled_from([(1, 1), (2, 1), (2, 3)]), st.integers(0, 99))
def test_others_of_their_size_take_their_places_at_any_number_of_ranks(n, data, ranks, seed):
    border = data.draw(st.integers(2, n - 3))
    buckets = [range(border), range(border, n)]
    bad = {i for b in buckets for i in data.draw(st.sets(st.sampled_from(b), max_size=len(b) // 2))}
    world, batch = ranks
    options = {"seed": seed, "buckets": buckets, "group": 6}
    start, count = 6 * data.draw(st.integers(0, 5)), 4 * 6 // (world * batch)
    wanted, _ = steps(range(n), world, batch, start, count, **options)
    got, notes = steps(Holed(n, bad), world, batch, start, count, **options)
    for w, g in zip(wanted, got, strict=True):
        assert g not in bad and (g < border) == (w < border)
        assert w in bad or g == w
    assert {start + i for i, w in enumerate(wanted) if w in bad} == {p for p, *_ in notes}
    assert {(file, said) for _, file, said in notes} <= {(f"{i // 3}", f"clip {i}") for i in bad}
    assert steps(Holed(n, bad), 1, 1, start, 24, **options) == (got, notes)


def test_neighbours_that_are_damaged_are_not_all_replaced_by_one():
    stream = ClipStream(Holed(40, range(10, 20)), batch_size=1, shuffle=False)
    got = list(itertools.islice(stream, 40))
    assert len(set(got[10:20])) == 10


def test_where_none_can_be_read_the_search_ends():
    stream = ClipStream(Holed(4, range(4)), batch_size=1)
    with pytest.raises(DamagedDataError, match=r"none of 64 clips .* position 0 .*: clip \d$"):
        stream.read(0)
    assert len(stream.notes()) == 64


def test_each_file_is_told_once_and_one_too_many_ends_it(caplog):
    damage = Damage(most=2)
    damage.see([(0, "a", "a, row 1"), (0, "b", "b, row 3"), (1, "a", "a, row 2")])
    assert damage.replaced == 2 and damage.files == ["a", "b"]
    damage.see([(2, "b", "b, row 4")])
    said = [record.getMessage() for record in caplog.records]
    assert [line.rpartition(": ")[2] for line in said] == ["a, row 1", "b, row 3"]
    assert all(record.levelno == logging.ERROR for record in caplog.records), "of every rank"
    with pytest.raises(DamagedDataError, match=r"met 3 files .* is 2: .* they are a, b, c; .* row"):
        damage.see([(3, "c", "c, row 0")])
    counts = [record.getMessage().partition(" size, ")[2] for record in caplog.records]
    assert [said.partition(" so far")[0] for said in counts] == [
        "1 in 1 files",
        "1 in 2 files",
        "4 in 3 files",
    ]


def test_what_the_system_failed_at_is_no_damage():
    with pytest.raises(DamagedDataError, match=r"^x\.parquet, row 3: .*; start again"):  # noqa: SIM117
        with reading(Path("x.parquet"), ", row 3"):
            raise OSError(errno.EIO, "Input/output error")
    with pytest.raises(DamagedDataError, match=r"^x\.parquet: malloc of size 64 failed; start"):  # noqa: SIM117
        with reading(Path("x.parquet"), "", pa.ArrowException):
            raise pa.ArrowMemoryError("malloc of size 64 failed")
    for error in (FileNotFoundError(errno.ENOENT, "gone"), OSError("ZSTD\n  failed")):
        with pytest.raises(DamagedClipError, match=r"^x\.parquet: \D*") as e:  # noqa: SIM117
            with reading(Path("x.parquet"), ""):
                raise error
        assert "\n" not in str(e.value)


def videos(folder, **changes):
    """Clips of 10 frames of those in folder/videos; what is decoded stays in the folder."""
    options = {"num_frames": 10, "height": 32, "width": 32, "cache_dir": str(folder)}
    return VideoDataLoader.Config(path=str(folder / "videos"), **options, **changes)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("harm", [Path.unlink, lambda file: file.write_bytes(b"short")])
def test_decoded_frames_that_are_gone_are_replaced(tmp_path, write_scenes, workers, harm, caplog):
    for name in "abc":
        write_scenes(tmp_path / "videos" / f"{name}.mov", [30])
    config = videos(tmp_path, num_workers=workers, max_damaged=1)
    straight = [batch["video"] for batch in itertools.islice(config.build(), 12)]
    loader = config.build()
    lost = loader.clips.clips[-1].video.path
    harm(lost)
    names = [loader.reading(i) for i in range(12)]
    got = [batch["video"] for batch in itertools.islice(loader, 12)]
    for name, ours, theirs in zip(names, got, straight, strict=True):
        assert str(lost) in name or torch.equal(ours, theirs)
    assert loader.damage.replaced == sum(str(lost) in name for name in names) > 1
    (line,) = [r.getMessage() for r in caplog.records if "replaces damaged" in r.getMessage()]
    assert f"{lost} from frame " in line and ("cut short" in line or "No such file" in line)
    harm(loader.clips.clips[0].video.path)
    with pytest.raises(DamagedDataError, match=r"^rank 0 met 2 files .* is 1: ") as e:
        list(itertools.islice(loader, 12))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_worker_that_finds_none_says_so_in_a_line(tmp_path, write_scenes, workers):
    write_scenes(tmp_path / "videos" / "a.mov", [30])
    loader = videos(tmp_path, num_workers=workers).build()
    loader.clips.clips[0].video.path.unlink()
    with pytest.raises(DamagedDataError, match=r"^none of 64 clips that were drawn") as e:
        next(iter(loader))
    assert "\n" not in str(e.value) and str(e.value).endswith("'")
