"""The command that encodes prompts: what it writes is what diffusers' WanPipeline takes."""

import json
import re
from pathlib import Path

import pytest
import torch
import tyro
from safetensors.torch import load_file, save_file
from tiny_encoder import save_encoder, states_of
from transformers import UMT5Model

from train.data.caches.text_encoder import CaptionEmbeds
from train.data.encode_prompts import Options, main


@pytest.fixture
def run(tmp_path):
    """run(prompts, **options): the exit status."""
    encoder = save_encoder(tmp_path / "encoder", "UMT5Model")

    def run(prompts, **options):
        given = {"text_encoder": encoder, "out": tmp_path / "a" / "embeds.safetensors"} | options
        named = (f"--{name.replace('_', '-')}={value}" for name, value in given.items())
        return main([f"--prompts={prompts}", *named])

    return run


def assert_same(found, ids, folder):
    """The states of these tokens as transformers has them, and zeros behind."""
    wanted = states_of(folder, "UMT5Model", ids)
    assert torch.equal(found[: len(ids)], wanted) and not found[len(ids) :].any()


def test_every_line_of_a_file_is_a_prompt(tmp_path, run):
    texts = tmp_path / "prompts.txt"
    texts.write_text("\ufeffa red wall\n\n  wall a\r\n", "utf-8")
    assert run(texts, negative_prompt="red") == 0
    (file,) = (tmp_path / "a").iterdir()
    assert {x.dtype for x in load_file(file).values()} == {torch.float32}
    found = load_file(file)
    assert found["prompt_embeds"].shape == (2, 512, 6)
    assert found["negative_prompt_embeds"].shape == (1, 512, 6)
    for prompt, ids in zip(found["prompt_embeds"], ([3, 4, 5], [5, 3])):
        assert_same(prompt, ids, tmp_path / "encoder")
    assert_same(found["negative_prompt_embeds"][0], [4], tmp_path / "encoder")


def test_a_text_is_a_prompt_and_the_empty_text_what_guidance_leaves(tmp_path, run):
    text = "a red wall " * 100  # longer than any file's name
    assert run(text, text_tokens=7) == 0
    found = load_file(tmp_path / "a" / "embeds.safetensors")
    assert_same(found["prompt_embeds"][0], [3, 4, 5, 3, 4, 5, 3], tmp_path / "encoder")
    assert found["negative_prompt_embeds"].shape == (1, 7, 6)
    assert not found["negative_prompt_embeds"].any()  # this tokenizer has no token for it


def test_what_cannot_be_is_one_line(tmp_path, run, caplog):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for prompts, options, words in [
        (tmp_path / "none.txt", {}, "none.txt is no file"),
        (tmp_path, {}, "is no file"),
        (tmp_path / "empty.txt", {}, "has no text"),
        (tmp_path / "latin.txt", {}, "latin.txt is no text in UTF-8"),
        (" ", {}, "has no text"),
        ("a", dict(text_encoder=tmp_path), "has no text encoder"),
        ("a", dict(text_tokens=513), "text_tokens=513, but Wan takes 512 at most"),
        ("a", dict(text_tokens=0), "text_tokens=0 must be positive"),
        ("a", dict(out=tmp_path / "empty.txt"), "empty.txt exists"),
        ("a", dict(out=tmp_path / "link"), "link exists"),
        ("a", dict(out=tmp_path / "empty.txt" / "b"), "cannot be written to"),
    ]:
        assert run(prompts, **options) == 1
        said = caplog.records[-1].getMessage()
        assert words in said and "\n" not in said
    assert not (tmp_path / "a").exists() and not (tmp_path / "nowhere").exists()


def widen(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"d_model": 8}))


def cut_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def drop_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.final_layer_norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def forget_words(folder):
    model = UMT5Model.from_pretrained(folder)
    model.resize_token_embeddings(5)
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut_weights, r"transformers cannot load .*encoder: .*not fully covered"),
        (widen, "11 weights of UMT5Model are not in .*, or of another size: encoder.block.0"),
        (drop_a_weight, "1 weights of UMT5Model are not .* size: encoder.final_layer_norm.weight"),
        (forget_words, "the tokenizer gives token 5, but the text encoder knows 5: they are"),
    ],
)
def test_a_text_encoder_that_is_none_is_one_line(tmp_path, run, caplog, change, words):
    change(tmp_path / "encoder")
    assert run("a red wall") == 1
    (said,) = (record.getMessage() for record in caplog.records)
    assert re.search(words, said) and "\n" not in said
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted: nothing is written"),
        (MemoryError(), 1, "error: out of memory"),
        (torch.OutOfMemoryError("CUDA out\nof memory."), 1, "error: CUDA out of memory. To encode"),
        (RuntimeError("can't allocate\nmemory"), 1, "error: can't allocate memory"),
    ],
    ids=["interrupt", "memory", "accelerator", "cpu"],
)
def test_what_ends_it_in_the_middle_is_one_line(
    tmp_path, run, caplog, monkeypatch, error, status, words
):
    encode = CaptionEmbeds.__getitem__

    def ended(self, index):
        if index:
            raise error
        return encode(self, index)

    monkeypatch.setattr(CaptionEmbeds, "__getitem__", ended)
    assert run("a red wall") == status
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith(words) and "\n" not in said
    assert not (tmp_path / "a").exists()


def test_the_docs_have_the_command():
    docs = (Path(__file__).parents[3] / "docs/wan.md").read_text()
    (given,) = re.findall(r"`python -m train.data.encode_prompts ([^`\n]*)`", docs)
    assert tyro.cli(Options, args=given.split()).prompts == "TEXT_OR_FILE"
