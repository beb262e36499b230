"""Latents of several sizes: in one folder, in batches of one size, as the command makes them."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from cached_run import FRAMES, HEIGHT, WIDTH, scene
from fastvideo_records import SHAPE, config, expected, record, take, write

TALL = (2, 3, 5, 4)
SIZES = (SHAPE[1:], TALL[1:])


def shape_of(number):
    return TALL if number % 3 == 1 else SHAPE


def write_both(folder, n=18, row_group_size=3):
    for first in range(0, n, 6):
        rows = [record(i, shape=shape_of(i)) for i in range(first, first + 6)]
        write(folder / f"{first:03d}.parquet", rows, row_group_size=row_group_size)


def numbers_of(batch, n=18):
    first = {float(expected(i, shape=shape_of(i))[0].flat[0]): i for i in range(n)}
    return [first[float(clip.flatten()[0])] for clip in batch["video"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_of_one_size_and_every_clip_comes(tmp_path, workers):
    write_both(tmp_path)
    made = config(tmp_path, buckets=SIZES, num_workers=workers, seed=1, holdout=0)
    batches = take(made.build(local_batch_size=2), 9)
    seen = []
    for batch in batches:
        found = numbers_of(batch)
        assert len({shape_of(i) for i in found}) == 1
        for clip, text, i in zip(batch["video"], batch["context"], found, strict=True):
            assert np.array_equal(clip, expected(i, shape=shape_of(i))[0])
            assert np.array_equal(text, expected(i, shape=shape_of(i))[1])
        seen += found
    assert sorted(seen) == list(range(18))
    ranks = [made.build(dp_world_size=2, dp_rank=r, local_batch_size=1) for r in range(2)]
    for rank in ranks:
        rank.load_state_dict({"position": 8, "clips": 18})
    got = [take(rank, 5) for rank in ranks]
    turns = [numbers_of(share[k])[0] for k in range(5) for share in got]
    assert turns == seen[8:]


def test_each_size_holds_out_its_own_clips(tmp_path):
    write_both(tmp_path)
    parts = {
        split: config(tmp_path, buckets=SIZES, holdout=0.3).build(split=split)
        for split in ("train", "validation")
    }
    counts = {s: [len(b) for b in loader.clips.buckets] for s, loader in parts.items()}
    assert counts == {"train": [8, 4], "validation": [4, 2]}
    held = [i for batch in parts["validation"] for i in numbers_of(batch)]
    assert sorted(held) == [12, 13, 14, 15, 16, 17]


def test_a_row_group_is_read_once_an_epoch_for_each_size(tmp_path, monkeypatch):
    write_both(tmp_path, row_group_size=6)
    read, plain = [], pq.ParquetFile.read_row_group

    def counting(self, number, columns):
        read.append(number)
        return plain(self, number, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counting)
    for seed in range(1, 6):
        take(config(tmp_path, buckets=SIZES, holdout=0, seed=seed).build(), 18)  # clip by clip
        # 3 row groups, 4 clips of one size and 2 of the other in each
        assert len(read) == 6 * seed


def test_the_command_encodes_each_video_at_its_size(tmp_path, run, videos, write_video):
    write_video(videos / "tall.mov", [np.rot90(frame) for frame in scene(7, 12)])
    sizes = (FRAMES, HEIGHT, WIDTH), (5, HEIGHT, WIDTH), (FRAMES, WIDTH, HEIGHT)
    flat = [str(x) for size in sizes for x in size]
    assert run(extra=["--buckets", *flat]) == 0
    rows = {r["id"]: r for r in pq.read_table(tmp_path / "out").to_pylist()}
    found = {name: tuple(r["vae_latent_shape"]) for name, r in rows.items()}
    wide, short, tall = (2, 3, 4, 6), (2, 2, 4, 6), (2, 3, 6, 4)
    assert found == {
        **{f"a/one-0000{start}": wide for start in ("00", "09", "20")},
        **{f"{name}-000000": wide for name in ("b", "c", "d")},
        "short-000000": short,
        "tall-000000": tall,
    }
    assert (rows["tall-000000"]["height"], rows["tall-000000"]["width"]) == (WIDTH, HEIGHT)
    assert rows["short-000000"]["duration_sec"] == 0.5
    manifest = json.loads((tmp_path / "out" / "_latents.json").read_text())
    assert manifest["buckets"] == [list(size) for size in sizes]
    assert run(extra=["--buckets", *flat[:3]]) == 1
    assert run() == 1


def test_one_bucket_is_the_same_as_one_size(tmp_path, run):
    assert run("one") == run("two", extra=["--buckets", str(FRAMES), str(HEIGHT), str(WIDTH)]) == 0
    one, two = (pq.read_table(tmp_path / name) for name in ("one", "two"))
    assert len(one) == 6 and one.equals(two)
