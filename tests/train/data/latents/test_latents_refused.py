"""Folders and settings that latents cannot be read with: one line each, with the fix."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastvideo_records import MEAN, OTHER, config, record, write, write_clips


def test_no_latent_of_the_size_says_which_there_are(tmp_path):
    write(tmp_path / "a.parquet", [record(i, OTHER) for i in range(3)])
    with pytest.raises(
        ValueError, match=r"\[2, 3, 4, 5\] among 3: it has 3 of \[2, 1, 4, 5\]; set"
    ):
        config(tmp_path).build()


@pytest.mark.parametrize("text", [(5, 6), (3, 7), (2, 3, 6), (6,)])
def test_text_that_does_not_fit_is_refused_before_training(tmp_path, text):
    write(tmp_path / "a.parquet", [record(0), record(1, text=text)])
    said = str(list(text)).replace("[", r"\[")
    with pytest.raises(ValueError, match=rf"1 text embeddings are {said}.*is \[4, 6\]: set"):
        config(tmp_path).build()


@pytest.mark.parametrize(
    "changes",
    [
        {"vae_latent_dtype": "bfloat16"},
        {"vae_latent_dtype": "int8"},
        {"vae_latent_bytes": bytes(8)},
        {"vae_latent_bytes": b""},
        {"vae_latent_bytes": None},
    ],
)
def test_bytes_that_are_no_such_tensor_name_their_file(tmp_path, changes):
    write(tmp_path / "a.parquet", [record(0), record(1) | changes], row_group_size=2)
    clips = config(tmp_path, holdout=0).build().clips
    clips[0]
    with pytest.raises(
        ValueError, match=r"a\.parquet, row group 0, row 1: vae_latent is \d+ bytes"
    ):
        clips[1]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"path": ""}, "give --dataloader.path, a folder of latents"),
        ({"path": "nowhere"}, "nowhere holds no parquet file: set path"),
        ({"latents_mean": MEAN[:1]}, "1 latents_mean and 2 latents_std: give one of each"),
        ({"latents_std": (0.0, 1.0)}, "the std above 0, for each of the 2 channels"),
        ({"latents_mean": (), "latents_std": (1.0, 1.0)}, "0 latents_mean and 2 latents_std"),
        ({"holdout": 1.0}, r"holdout=1.0 in \[0, 1\)"),
        ({"text_tokens": 0}, "text_tokens=0 and text_dim=6 must be positive"),
        ({"width": 0}, r"latent=\(2, 3, 4, 0\)"),
    ],
)
def test_bad_settings_are_refused(tmp_path, changes, said):
    write_clips(tmp_path, 3)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        config(tmp_path, **changes).build()


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / "b.parquet").write_text("not parquet")
    with pytest.raises(ValueError, match=r"b\.parquet is no Parquet file: "):
        config(tmp_path).build()
    (tmp_path / "b.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    with pytest.raises(ValueError, match=r"b\.parquet is no Parquet file: .*run `git lfs pull`$"):
        config(tmp_path).build()
    pq.write_table(pa.table({"id": ["a"], "caption": ["b"]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet lacks the columns vae_latent_bytes, "):
        config(tmp_path).build()


def test_a_split_without_a_clip_is_refused(tmp_path):
    write_clips(tmp_path, 1)
    assert len(config(tmp_path).build().clips) == 1
    with pytest.raises(ValueError, match=r"1 clips, none of them for validation with holdout=0\.1"):
        config(tmp_path).build(split="validation")
