"""FastVideo's records: what the loader makes of them, to the bit."""

import itertools
import logging
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from fastvideo_records import (
    I2V_SCHEMA,
    OTHER,
    SHAPE,
    T2V_SCHEMA,
    TEXT,
    config,
    expected,
    record,
    write,
    write_clips,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data import LatentFolder
from train.data.latents.records import SCHEMA, read_tensor, tensor_columns

size = st.integers(1, 4)


@settings(max_examples=15)
@given(
    st.lists(st.lists(st.booleans(), max_size=6), min_size=1, max_size=3),
    st.tuples(size, size, size, size).filter(lambda s: len(set(s)) > 2),
    st.integers(1, 3),
    st.tuples(st.integers(0, 4), st.booleans()),
    st.sampled_from([0.0, 0.2, 0.6]),
)
def test_fastvideo_records_are_read_as_they_are(files, shape, group, text, holdout):
    """All records of the shape, normalised, in one split each; the others in none."""
    text = (1, text[0], 6) if text[1] else (text[0], 6)
    other = (*shape[:3], shape[3] + 1)
    stats = {"mean": np.linspace(-1, 2, shape[0]), "std": np.linspace(0.3, 3, shape[0])}
    count = itertools.count()
    with tempfile.TemporaryDirectory() as folder:
        fitting = []
        for name, (rows, schema) in enumerate(
            zip(files, itertools.cycle((T2V_SCHEMA, I2V_SCHEMA)))
        ):
            ids = [(next(count), fits) for fits in rows]
            records = [record(i, shape if fits else other, text) for i, fits in ids]
            write(Path(folder, "deep", f"{name}.parquet"), records, schema, group)
            fitting += [i for i, fits in ids if fits]
        options = {"latent": shape, **TEXT, **{k: v.tolist() for k, v in stats.items()}}
        held = max(1, round(len(fitting) * holdout)) if holdout and len(fitting) > 1 else 0
        border = len(fitting) - held
        for split, wanted in (("train", fitting[:border]), ("validation", fitting[border:])):
            if not wanted:
                with pytest.raises(ValueError, match="has no latent of|none of them for"):
                    LatentFolder(folder, split=split, holdout=holdout, **options)
                continue
            clips = LatentFolder(folder, split=split, holdout=holdout, **options)
            assert len(clips) == len(wanted)
            for i, number in enumerate(wanted):
                latent, context = expected(number, shape, text, **stats)
                assert np.array_equal(clips[i]["video"].numpy(), latent)
                assert np.array_equal(clips[i]["context"].numpy(), context)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("prefix", ["", "torch."])
def test_every_dtype_is_read(dtype, prefix):
    values = torch.randn(3, 5).to(getattr(torch, dtype))
    data = values.view(torch.uint8).numpy().tobytes()
    row = {"x_bytes": data, "x_shape": [3, 5], "x_dtype": prefix + dtype}
    assert torch.equal(read_tensor(pa.Table.from_pylist([row]), "x", 0), values.float())


def test_what_is_written_is_fastvideos_schema_in_float32():
    assert SCHEMA.equals(T2V_SCHEMA)
    values = torch.randn(3, 5, dtype=torch.bfloat16)
    row = tensor_columns("x", values.T)  # not contiguous
    assert row["x_dtype"] == "float32" and row["x_shape"] == [5, 3]
    there = np.frombuffer(row["x_bytes"], np.float32).reshape(5, 3)
    assert np.array_equal(there, values.T.float().numpy())


def test_a_record_without_text_is_zeros_and_said_once(tmp_path, caplog):
    rows = [record(0), record(1) | {"text_embedding_bytes": b"", "text_embedding_shape": []}]
    rows += [record(2) | {"text_embedding_bytes": None, "text_embedding_shape": None}]
    write(tmp_path / "a.parquet", rows)
    with caplog.at_level(logging.WARNING, logger="train"):  # other tests may have silenced it
        clips = config(tmp_path, holdout=0).build().clips
        assert clips[0]["context"].any() and not clips[1]["context"].any()
        assert clips[2]["context"].shape == (4, 6) and not clips[2]["context"].any()
    assert [r.getMessage() for r in caplog.records if "no text" in r.message] == [
        f"{tmp_path}: 2 clips have no text: their context is zeros"
    ]


def test_latents_as_stored_without_mean_and_std(tmp_path):
    write_clips(tmp_path, 2)
    clips = config(tmp_path, latents_mean=(), latents_std=(), holdout=0).build().clips
    assert np.array_equal(clips[1]["video"], expected(1, mean=(0, 0), std=(1, 1))[0])


def test_other_sizes_are_counted_in_one_line(tmp_path, caplog):
    shapes = [SHAPE, OTHER, OTHER, (2, 3, 5), SHAPE]
    write(tmp_path / "a.parquet", [record(i, s) for i, s in enumerate(shapes)])
    with caplog.at_level(logging.WARNING, logger="train"):
        loaders = [config(tmp_path).build(split=split) for split in ("train", "validation")]
    assert [len(loader.clips) for loader in loaders] == [1, 1]
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path}: left out 3 of 5 latents, which are not of [2, 3, 4, 5]: "
        "2 of [2, 1, 4, 5], 1 of [2, 3, 5]"
    ]
