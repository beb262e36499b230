"""Runs that were stopped, run at the same time, or find a folder of something else."""

import fcntl

import pytest
from cached_run import files, said

from train.data import cache_latents
from train.data.caches.encode import load_vae
from train.data.caches.folder import claimed


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_files(
    tmp_path, run, embeds, encoded, caplog
):
    assert run("whole", prompt_embeds=embeds) == 0 and len(encoded) == 6
    encoded.clear()
    encoded.stop_at = 5
    assert run(prompt_embeds=embeds) == 130 and "start again to go on" in said(caplog)[-1]
    there = {p.name for p in (tmp_path / "out").glob("*.parquet")}
    assert there == {"latents-00000-of-00003.parquet"}
    with open(tmp_path / "out" / "_latents-00001-of-00003.parquet.tmp", "ab") as half:
        half.write(b"as a kill leaves it")
    encoded.clear()
    encoded.stop_at = None
    assert run(prompt_embeds=embeds) == 0 and len(encoded) == 2
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert run(prompt_embeds=embeds) == 0 and len(encoded) == 2
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_runs_at_the_same_time_share_the_files(tmp_path, run, encoded, caplog):
    first, second = (tmp_path / "out" / f"latents-0000{i}-of-00003.parquet" for i in range(2))
    first.parent.mkdir()
    with open(first.with_name(f"_{second.name}.tmp"), "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # as another run does while it writes
        assert run() == 0 and len(encoded) == 4
        assert first.exists() and not second.exists()
        assert "4 clips, 2 of 3 files, videos left out: 1;" in said(caplog)[-1]
    assert run() == 0 and len(encoded) == 6 and second.exists()


def test_a_file_that_is_finished_meanwhile_is_kept(tmp_path):
    file = tmp_path / "a.parquet"
    with claimed(file) as out:
        assert out is not None and not file.exists()
        out.write(b"whole")
    with claimed(file) as out:
        assert out is None
    assert files(tmp_path) == {"a.parquet": b"whole"}


@pytest.mark.parametrize(
    "changes, said_of",
    [
        ({"width": 64}, "width is 48 there and 64 here"),
        ({"stride": 3}, "stride is 0 there and 3 here"),
        ({"videos_per_file": 1}, "videos_per_file is 2 there and 1 here"),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path, run, encoded, caplog, changes, said_of):
    encoded.stop_at = 0
    run()
    before = files(tmp_path / "out")
    assert run(**changes) == 1 and files(tmp_path / "out") == before
    assert f"another run ({said_of}): give another --out" in said(caplog)[-1]


def test_other_videos_captions_embeddings_or_weights_are_another_run(
    tmp_path, run, videos, vae, embeds, encoded, caplog
):
    encoded.stop_at = 0
    run()
    assert run(prompt_embeds=embeds) == 1 and "prompt_embeds is False there" in said(caplog)[-1]
    caption = videos / "b.txt"
    caption.write_text("a blue wall")
    assert run() == 1 and "(videos is " in said(caplog)[-1]
    caption.write_text("a red wall")
    assert run() == 130
    model = load_vae(vae)
    model.quant_conv.bias += 1
    model.save_pretrained(tmp_path / "vae")
    assert run(vae=tmp_path / "vae") == 1 and "(vae is " in said(caplog)[-1]


def test_latents_of_frames_that_were_decoded_otherwise_are_another_run(
    run, encoded, caplog, monkeypatch
):
    encoded.stop_at = 0
    run()
    monkeypatch.setattr(cache_latents, "DECODING", cache_latents.DECODING + 1)
    assert run() == 1 and "(decoding is " in said(caplog)[-1]


def test_parquet_files_of_others_are_let_alone(tmp_path, run, encoded, caplog):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs.parquet").write_text("x")
    assert run() == 1 and not encoded
    assert "holds *.parquet but no _latents.json" in said(caplog)[-1]
    assert files(tmp_path / "out") == {"theirs.parquet": b"x"}


def test_an_out_that_takes_no_files_is_found_first(tmp_path, run, encoded, caplog, monkeypatch):
    (tmp_path / "out").write_text("a file")
    assert run() == 1 and not encoded and "out" in said(caplog)[-1]

    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("train.data.caches.folder.tempfile.TemporaryFile", full)
    assert run("other") == 1 and not encoded and "No space left" in said(caplog)[-1]
    assert not files(tmp_path / "other")
