"""Prompt embeddings as safetensors: found by name or caption, and all missing ones told at once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from train.data.caches.prompt_embeds import PromptEmbeds

VIDEOS = [("b", "a wall"), ("deep/a", "a door"), ("c", "a wall")]


def text(tokens, dim=6):
    return torch.randn(tokens, dim, generator=torch.Generator().manual_seed(tokens))


def folder_of(folder, tensors, name="prompt_embeds"):
    for stem, tensor in tensors.items():
        file = folder / f"{stem}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor}, file)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_folder_has_a_file_for_each_video(tmp_path, dtype):
    given = {"b": text(2), "deep/a": text(3)[None], "c": text(5)}
    given = {name: tensor.to(dtype) for name, tensor in given.items()}
    embeds = PromptEmbeds(folder_of(tmp_path, given), VIDEOS)
    for i, (name, _) in enumerate(VIDEOS):
        wanted = given[name].float().reshape(-1, 6)
        assert embeds[i].dtype == torch.float32 and torch.equal(embeds[i], wanted)


@given(st.lists(st.booleans(), min_size=3, max_size=3))
def test_a_file_has_a_tensor_for_each_name_or_caption(tmp_path_factory, by_name):
    keys = [name if named else caption for (name, caption), named in zip(VIDEOS, by_name)]
    file = tmp_path_factory.mktemp("one") / "all.safetensors"
    save_file({key: text(1 + i) for i, key in enumerate(sorted(set(keys)))}, file)
    embeds = PromptEmbeds(file, VIDEOS)
    for i, (name, caption) in enumerate(VIDEOS):
        key = name if name in keys else caption
        assert torch.equal(embeds[i], text(1 + sorted(set(keys)).index(key)))


def test_without_embeddings_there_are_no_tokens():
    assert PromptEmbeds(None, VIDEOS)[2].shape == (0, 4096)


def test_missing_embeddings_are_listed_at_once(tmp_path):
    folder_of(tmp_path / "some", {"b": text(2)})
    with pytest.raises(
        ValueError, match="no embedding of 2 of 3 videos: deep/a, c; a folder needs"
    ):
        PromptEmbeds(tmp_path / "some", VIDEOS)
    save_file({"a door": text(2)}, tmp_path / "all.safetensors")
    with pytest.raises(ValueError, match="no embedding of 2 of 3 videos: b, c; a folder needs"):
        PromptEmbeds(tmp_path / "all.safetensors", VIDEOS)
    many = [(f"v{i}", "") for i in range(12)]
    with pytest.raises(ValueError, match=r"12 of 12 videos: v0, .*, v9, \.\.\.; a"):
        PromptEmbeds(tmp_path / "some", many)


@pytest.mark.parametrize(
    "shape, said",
    [((6,), r"is \[6\]: make it"), ((2, 3, 6), r"\[2, 3, 6\]: make"), ((4, 7), "several widths")],
)
def test_an_embedding_of_another_shape_is_named(tmp_path, shape, said):
    given = {"b": text(2), "deep/a": text(3), "c": torch.zeros(shape)}
    with pytest.raises(ValueError, match=said) as error:
        PromptEmbeds(folder_of(tmp_path, given), VIDEOS)
    assert "c.safetensors" in str(error.value)


def test_files_of_something_else_are_named(tmp_path):
    with pytest.raises(ValueError, match='no tensor "prompt_embeds", it has embeds: rename'):
        PromptEmbeds(folder_of(tmp_path / "a", {n: text(2) for n, _ in VIDEOS}, "embeds"), VIDEOS)
    (tmp_path / "x.safetensors").write_text("not one")
    with pytest.raises(ValueError, match="x.safetensors is no safetensors file: "):
        PromptEmbeds(tmp_path / "x.safetensors", VIDEOS)
    with pytest.raises(FileNotFoundError, match="nowhere: neither folder nor file"):
        PromptEmbeds(tmp_path / "nowhere", VIDEOS)
