"""The index of a folder is what its files say, whichever rank reads them, and each is read once."""

import errno
import json
import os
import re
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastvideo_records import OTHER, SHAPE, config, record, write, write_clips
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer_runs import finish, start

from train.data.latents import index as latent_index
from train.data.latents.index import read_index

RECORD = st.tuples(st.sampled_from([SHAPE, OTHER]), st.sampled_from([(3, 6), (1, 6), (0,)]))


def plainly(files):
    """(file, row group, row, shape, text) of each record, a value at a time."""
    found = []
    for i, file in enumerate(files):
        with pq.ParquetFile(file) as parquet:
            for g in range(parquet.num_row_groups):
                rows = parquet.read_row_group(g).to_pylist()
                shapes = [(r["vae_latent_shape"], r["text_embedding_shape"]) for r in rows]
                found += [(i, g, row, *map(tuple, pair)) for row, pair in enumerate(shapes)]
    return found


def spelt(index):
    places = zip(index.records.tolist(), index.kind.tolist(), strict=True)
    return [(*index.groups[group].tolist(), row, *index.kinds[k]) for (group, row), k in places]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.lists(RECORD, max_size=5), st.integers(1, 3)), min_size=1, max_size=4))
def test_it_is_what_the_files_say(made):
    with tempfile.TemporaryDirectory() as name:
        files = []
        for i, (rows, size) in enumerate(made):
            files.append(Path(name, f"{i}.parquet"))
            write(files[-1], [record(j, *row) for j, row in enumerate(rows)], row_group_size=size)
        index = read_index(name, files)
        assert spelt(index) == plainly(files) and len(set(index.kinds)) == len(index.kinds)


def test_ranks_read_a_share_each_and_know_all(tmp_path):
    folder = tmp_path / "latents"
    write_clips(folder, 20, per_file=3)
    files = sorted(folder.rglob("*.parquet"))
    alone = read_index(folder, files)
    finish(start(str(Path(__file__).with_name("index_ranks.py")), str(folder), ranks=2))
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    kinds = [[list(shape) for shape in kind] for kind in alone.kinds]
    same = [alone.records.tolist(), alone.groups.tolist(), alone.kind.tolist(), kinds]
    assert [rank["index"] for rank in ranks] == [same] * 2
    assert [rank["first"] for rank in ranks] == [[f.name for f in files[r::2]] for r in range(2)]
    assert [rank["second"] for rank in ranks] == [[]] * 2
    # a file more, before all others: each of the others is another rank's now
    assert Counter(x for rank in ranks for x in rank["changed"][0]) == Counter(
        ["0.parquet", *(f.name for f in files)]
    )
    assert {rank["changed"][1] for rank in ranks} == {rank["elsewhere"] for rank in ranks} == {27}
    told = {key: {rank[key] for rank in ranks} for key in ("names", "others", "bad", "none")}
    (names,), (others,), (bad,), (none,) = told.values()
    first, second = re.findall(r"3 files, [\d,]+ bytes \((\w+) by their names", names)
    assert first != second
    assert " has 3 files, " in others and " on rank 0, and 4 files, " in others
    for rank in ranks:
        same = f" 2 files, {rank['size']:,} bytes ("
        assert rank["exchanged"].count(same) == 2 and "\n" not in rank["exchanged"]
    assert f"ValueError: {files[0]} is no Parquet file: " in bad and "\n" not in bad
    assert f"FileNotFoundError: {folder} holds no parquet file" in none


def test_the_other_split_opens_no_file_again(tmp_path, monkeypatch):
    write_clips(tmp_path, 20)
    opened, plain = [], latent_index._contents
    monkeypatch.setattr(latent_index, "_contents", lambda file: opened.append(file) or plain(file))
    for split in ("train", "validation"):
        config(tmp_path).build(split=split)
    assert opened == sorted(tmp_path.rglob("*.parquet"))
    write(tmp_path / "000.parquet", [record(i) for i in range(4)])
    assert len(config(tmp_path, holdout=0).build().clips) == 19 and len(opened) == 5
    assert len(latent_index._read) == 4, "what was there before is forgotten"
    os.utime(tmp_path / "005.parquet", (1, 1))
    config(tmp_path).build()
    assert opened[5:] == [tmp_path / "005.parquet"]


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "Permission denied"), pa.ArrowMemoryError("malloc of")]
)
def test_nobody_is_told_to_remove_a_file_that_the_system_would_not_read(
    tmp_path, monkeypatch, error
):
    write_clips(tmp_path, 1)

    def fails(file):
        raise error

    monkeypatch.setattr(pq, "ParquetFile", fails)
    with pytest.raises(ValueError, match=r"000\.parquet cannot be read: .*(denied|malloc of)$"):
        read_index(tmp_path, [tmp_path / "000.parquet"])
