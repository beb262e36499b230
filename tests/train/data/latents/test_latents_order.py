"""Latents in batches: every clip once an epoch, shared by ranks, resumed exactly."""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fastvideo_records import SHAPE, TEXT, config, numbers, record, take, write, write_clips
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data import LatentFolder


@settings(max_examples=20)
@given(st.integers(1, 23), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_an_epoch_is_every_clip_once_row_group_by_row_group(n, per_file, group, seed):
    with tempfile.TemporaryDirectory() as folder:
        write_clips(Path(folder), n, per_file, group)
        clips = LatentFolder(folder, latent=SHAPE, holdout=0, **TEXT)
        order = clips.shuffled(np.random.default_rng(seed), np.arange(n))
    assert sorted(order) == list(range(n))
    runs = [g for g, _ in itertools.groupby(clips.clips[order, 0])]
    assert len(runs) == len(set(runs)) == len(clips.groups)


def test_epochs_differ_in_the_order_of_groups_and_within_them(tmp_path):
    write_clips(tmp_path, 40, per_file=20, row_group_size=5)
    seen = np.array(numbers(take(config(tmp_path, holdout=0).build(local_batch_size=5), 16)))
    first, second = seen.reshape(2, 8, 5)
    groups = [epoch[:, 0] // 5 for epoch in (first, second)]
    assert sorted(groups[0]) == list(range(8)) and list(groups[0]) != list(groups[1])
    assert (first // 5 == groups[0][:, None]).all()
    in_place = [epoch[np.argsort(order)] for epoch, order in zip((first, second), groups)]
    assert (np.sort(in_place[0]) == np.sort(in_place[1])).all()
    assert (in_place[0] != in_place[1]).any(1).all()
    other = take(config(tmp_path, holdout=0, seed=1).build(local_batch_size=5), 8)
    assert numbers(other) != first.flatten().tolist()


def test_a_row_group_is_read_once_an_epoch_and_one_is_held(tmp_path, monkeypatch):
    write_clips(tmp_path, 30, per_file=10, row_group_size=5)
    read, plain = [], pq.ParquetFile.read_row_group

    def counting(self, number, columns):
        assert not loader.clips._held  # the last one is gone before the next is read
        read.append(number)
        return plain(self, number, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counting)
    loader = config(tmp_path, holdout=0).build(local_batch_size=3)
    assert not read
    take(loader, 10)
    assert len(read) == 6


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 5])
def test_resume_equals_going_on(tmp_path, workers, stop):
    write_clips(tmp_path, 11)
    made = config(tmp_path, num_workers=workers, seed=3)
    straight = take(made.build(local_batch_size=2), stop + 8)
    first, second = (made.build(local_batch_size=2) for _ in range(2))
    for _ in zip(range(stop), first, strict=False):
        pass
    second.load_state_dict(first.state_dict())
    for got, wanted in zip(take(second, 8), straight[stop:], strict=True):
        assert all(torch.equal(got[key], wanted[key]) for key in ("video", "context"))
        assert got["video"].shape == (2, *SHAPE) and got["context"].shape == (2, 4, 6)
        assert got["video"].dtype == got["context"].dtype == torch.float32


@pytest.mark.parametrize("ranks, batch", [(2, 1), (3, 2)])
def test_ranks_share_an_epoch_without_overlap(tmp_path, ranks, batch):
    write_clips(tmp_path, 20)  # 18 train
    loaders = [
        config(tmp_path).build(dp_world_size=ranks, dp_rank=r, local_batch_size=batch)
        for r in range(ranks)
    ]
    shares = [numbers(take(loader, 18 // (ranks * batch))) for loader in loaders]
    assert sorted(itertools.chain(*shares)) == list(range(18))
    alone = numbers(take(config(tmp_path).build(), 18))
    steps = [share[k : k + batch] for k in range(0, len(shares[0]), batch) for share in shares]
    assert list(itertools.chain(*steps)) == alone


def test_a_rank_names_what_its_batches_are_made_of(tmp_path):
    write_clips(tmp_path, 20)
    loader = config(tmp_path).build(dp_world_size=2, dp_rank=1, local_batch_size=3)
    for i, batch in enumerate(take(loader, 3)):
        names = [
            f"{tmp_path}/{n // 5 * 5:03d}.parquet, row group {n % 5 // 2}, row {n % 5 % 2}"
            for n in numbers([batch])
        ]
        place = f"positions {6 * i + 3} to {6 * i + 5} of the data"
        assert loader.reading(i) == f"{place}: {', '.join(names)}"


def test_validation_is_the_last_clips_in_order(tmp_path):
    write_clips(tmp_path, 20)
    loader = config(tmp_path, holdout=0.15).build(local_batch_size=3, split="validation")
    assert [numbers(loader) for _ in range(2)] == [[17, 18, 19]] * 2 and len(loader) == 1


def test_latents_behind_links_are_read_once(tmp_path):
    data, disk = tmp_path / "data", tmp_path / "disk"
    write(data / "here" / "a.parquet", [record(0), record(1)])
    write(disk / "b.parquet", [record(2)])
    (data / "there").symlink_to(disk)
    (data / "here" / "up").symlink_to(data)
    (data / "here" / "b.parquet").symlink_to(disk / "b.parquet")
    clips = LatentFolder(data, latent=SHAPE, holdout=0, **TEXT)
    names = [file.relative_to(data).as_posix() for file in clips.files]
    assert names == ["here/a.parquet", "there/b.parquet"] and len(clips) == 3
