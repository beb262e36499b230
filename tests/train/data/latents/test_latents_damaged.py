"""Latents that were damaged, lost or changed after they were listed: others take their places."""

import itertools

import pyarrow.parquet as pq
import pytest
import torch
from fastvideo_records import OTHER, config, record, take, write, write_clips

from train.data.order.damaged import DamagedDataError


def spoil(file, group, column="vae_latent_bytes"):
    """Overwrite the middle of a column's page: what zstd says of it has no file in it."""
    with pq.ParquetFile(file) as parquet:
        groups = parquet.metadata.row_group(group)
        columns = [groups.column(i) for i in range(groups.num_columns)]
        (chunk,) = [c for c in columns if c.path_in_schema == column]
    data = bytearray(file.read_bytes())
    middle = chunk.data_page_offset + chunk.total_compressed_size // 2
    data[middle : middle + 40] = bytes(40)
    file.write_bytes(data)


def harm(folder, kind):
    """Change the file of records 4 to 7; which of them are lost."""
    file = folder / "004.parquet"
    if kind == "a page":
        spoil(file, 1)
        return {6, 7}
    if kind == "a file":
        file.unlink()
    if kind == "the end of a file":
        file.write_bytes(file.read_bytes()[:-300])
    if kind == "rows":
        write(file, [record(i) for i in (4, 5, 6)], row_group_size=2)
        return {7}
    if kind == "a row group":
        write(file, [record(i) for i in (4, 5)], row_group_size=2)
        return {6, 7}
    if kind == "a shape":
        others = [record(5, OTHER), record(6, text=(5, 6)), record(7, text=(6, 3))]
        write(file, [record(4), *others], row_group_size=2)
        return {5, 6, 7}
    return {4, 5, 6, 7}


KINDS = ["a page", "a file", "the end of a file", "rows", "a row group", "a shape"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_rest_stays_and_the_file_is_named(tmp_path, kind, caplog):
    write_clips(tmp_path, 12, per_file=4)
    made = config(tmp_path, holdout=0)
    straight = take(made.build(local_batch_size=2), 12)
    first, second = (made.build(local_batch_size=2) for _ in range(2))
    clips = [first.stream.index(position) for position in range(24)]
    lost = harm(tmp_path, kind)
    got = take(first, 12)
    for key in ("video", "context"):
        ours, theirs = (torch.cat([batch[key] for batch in b]) for b in (got, straight))
        assert [i for i, (a, b) in enumerate(zip(ours, theirs)) if not torch.equal(a, b)] == [
            i for i, clip in enumerate(clips) if clip in lost
        ]
    assert first.damage.replaced == sum(clip in lost for clip in clips)
    (line,) = [r.getMessage() for r in caplog.records if "replaces damaged" in r.getMessage()]
    assert f"{tmp_path / '004.parquet'}, row group " in line and "\n" not in line
    second.load_state_dict({"position": 6, "clips": 12})
    for ours, theirs in zip(take(second, 9), got[3:], strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in ("video", "context"))


def test_workers_replace_alike_and_a_row_group_is_tried_once(tmp_path, monkeypatch):
    write_clips(tmp_path, 12, per_file=6, row_group_size=6)
    alone, shared = (
        config(tmp_path, holdout=0, num_workers=n).build(local_batch_size=2) for n in (0, 2)
    )
    spoil(tmp_path / "000.parquet", 0)
    read, plain = [], pq.ParquetFile.read_row_group

    def counting(self, number, columns):
        read.append(number)
        return plain(self, number, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counting)
    batches = take(alone, 6)
    assert len(read) == 2, "the good one, and the other once"
    assert all(torch.equal(a["video"], b["video"]) for a, b in zip(batches, take(shared, 6)))
    assert shared.damage.replaced == alone.damage.replaced == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_damaged_files_end_it_in_a_line(tmp_path, workers):
    write_clips(tmp_path, 12, per_file=2)
    loader = config(tmp_path, holdout=0, max_damaged=2, num_workers=workers).build()
    for name in ("000", "002", "004"):
        spoil(tmp_path / f"{name}.parquet", 0)
    with pytest.raises(DamagedDataError, match="met 3 files .* --dataloader.max-damaged is 2") as e:
        list(itertools.islice(loader, 12))
    assert "\n" not in str(e.value) and "004.parquet" in str(e.value)
