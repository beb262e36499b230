"""Captions that the command encodes itself, and processes that share the work."""

import json
import multiprocessing
import sys
import time

import pyarrow.parquet as pq
import pytest
import torch
from cached_run import LATENT, files, said
from tiny_encoder import save_encoder, states_of

from train.data import LatentDataLoader
from train.data.cache_latents import LatentCache
from train.data.caches.processes import beside, shared_cores
from train.data.caches.text_encoder import fingerprint

KINDS = ["T5EncoderModel", "UMT5Model", "BertModel"]


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_encoded_as_transformers_does(tmp_path, run, kind):
    if kind == "BertModel":
        encoder = save_encoder(
            tmp_path / "pipe" / "text_encoder", kind, tokenizer=tmp_path / "pipe" / "tokenizer"
        )
        given = tmp_path / "pipe"
    else:
        given = encoder = save_encoder(tmp_path / "encoder", kind)
    assert run(text_encoder=given) == 0
    rows = {r["id"]: r for r in pq.read_table(tmp_path / "out").to_pylist()}
    # "a red wall" of b, "a" of a/one (its class), and no word at all
    for name, ids in (("b-000000", [3, 4, 5]), ("a/one-000000", [3]), ("c-000000", [])):
        wanted = states_of(encoder, kind, ids) if ids else torch.zeros(0, 6)
        row = rows[name]
        assert row["text_embedding_shape"] == list(wanted.shape)
        assert row["text_embedding_bytes"] == wanted.numpy().tobytes()
    data = LatentDataLoader.Config(
        path=str(tmp_path / "out"), latents_mean=(), latents_std=(), text_dim=6, **LATENT
    )
    assert data.build().clips[0]["context"].shape == (512, 6)


def test_long_captions_are_cut_and_another_encoder_is_another_run(tmp_path, run, caplog):
    encoder = save_encoder(tmp_path / "encoder", "T5EncoderModel")
    assert run(text_encoder=encoder, text_tokens=2) == 0
    shapes = pq.read_table(tmp_path / "out")["text_embedding_shape"].to_pylist()
    assert [2, 6] in shapes and max(shape[0] for shape in shapes) == 2
    before = files(tmp_path / "out")
    assert run(text_encoder=encoder, text_tokens=3) == 1
    assert "text_tokens is 2 there and 3 here" in said(caplog)[-1]
    other = save_encoder(tmp_path / "other", "T5EncoderModel", seed=1)
    assert run(text_encoder=other, text_tokens=2) == 1
    assert "(text_encoder is " in said(caplog)[-1]
    assert run() == 1 and run(text_encoder=encoder, text_tokens=2) == 0
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize("place", [0, 2_999_999])
def test_a_fingerprint_knows_both_ends_of_a_file(tmp_path, place):
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    data = bytearray(3_000_000)
    weights.write_bytes(data)
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    data[place] = 1
    weights.write_bytes(data)
    assert fingerprint(tmp_path) != before


def test_what_is_no_text_encoder_is_one_line(tmp_path, run, embeds, encoded, caplog):
    encoder = save_encoder(tmp_path / "encoder", "T5EncoderModel")
    assert run(text_encoder=encoder, prompt_embeds=embeds) == 1
    assert "give --text-encoder or --prompt-embeds, not both" in said(caplog)[-1]
    (encoder / "model.safetensors").unlink()
    assert run(text_encoder=encoder) == 1 and "transformers cannot load" in said(caplog)[-1]
    (encoder / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    assert run(text_encoder=encoder) == 1 and "transformers cannot load" in said(caplog)[-1]
    assert run(text_encoder=encoder, text_tokens=0) == 1
    assert not encoded and not (tmp_path / "out").exists()
    assert all("\n" not in line for line in said(caplog))


def test_processes_share_the_work_and_write_the_same(tmp_path, run, embeds, monkeypatch, caplog):
    """The first process writes nothing here, so that it is the others that do."""
    assert run("alone", prompt_embeds=embeds) == 0
    monkeypatch.setattr(LatentCache, "encode", lambda self: None)
    assert run(prompt_embeds=embeds, processes=2) == 0
    assert "6 clips, 3 of 3 files, videos left out: 1;" in said(caplog)[-1]
    assert files(tmp_path / "out") == files(tmp_path / "alone")
    assert not multiprocessing.active_children()


def test_a_process_that_fails_is_told_of_and_none_is_left_behind():
    with pytest.raises(RuntimeError, match="2 of 2 further processes ended with 1: what is"):
        with beside(2, sys.exit):
            pass
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        with beside(1, _sleep):
            raise KeyboardInterrupt
    for process in multiprocessing.active_children():
        process.join(10)
    assert time.monotonic() - began < 30 and not multiprocessing.active_children()


def _sleep(_):
    time.sleep(60)


def test_cores_are_shared_and_given_back():
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    with shared_cores(4):
        assert torch.get_num_threads() == 1
    with shared_cores(2):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 6
    torch.set_num_threads(before)
