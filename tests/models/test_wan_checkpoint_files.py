"""Wan's checkpoints: files that are broken or unsafe are refused; nothing is overwritten."""

import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from wan_checkpoints import STEM, awake, change, refusal

from models.wan import debug
from models.wan.checkpoint import load, save

FILE = f"{STEM}.safetensors"
INDEX = f"{FILE}.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(awake(debug()), tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save(awake(debug()), tmp_path / "sharded", max_shard_bytes=100_000)
    return tmp_path / "sharded"


@pytest.mark.parametrize("kept", [0, 5, 3_000, -1])
def test_a_file_cut_short(sharded, kept):
    file = sorted(sharded.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:kept])
    line = refusal(sharded)
    assert f"PATH/{file.name} is no whole safetensors file" in line
    assert f"{file.stat().st_size:,} bytes" in line


def test_shards_that_are_missing(sharded):
    files = sorted(sharded.glob("*.safetensors"))
    files[1].unlink(), files[2].unlink()
    lost = f"names {len(files)} shards, of which 2 are missing: {files[1].name}, {files[2].name};"
    assert lost in refusal(sharded)


def test_an_index_that_is_none(sharded):
    (sharded / INDEX).write_text("{}")
    assert f"PATH/{INDEX} has no weight_map" in refusal(sharded)
    (sharded / INDEX).write_text('{"weight_map": ')
    assert f"PATH/{INDEX} is no JSON" in refusal(sharded)
    (sharded / INDEX).write_text("[]")
    assert f"PATH/{INDEX} holds a list, not an object" in refusal(sharded)


def test_a_key_in_two_files(folder):
    save_file({"proj_out.bias": torch.ones(64)}, folder / f"{STEM}-2.safetensors")
    line = refusal(folder)
    assert f"proj_out.bias is in both {STEM}-2.safetensors and {FILE}" in line


def test_quantised_weights(folder):
    change(folder, **{"proj_out.weight": torch.ones(64, 64).to(torch.float8_e4m3fn)})
    assert "proj_out.weight is stored as F8_E4M3: give weights in fp32" in refusal(folder)


@pytest.mark.parametrize(
    "content, options, said",
    [
        ({"proj_out.bias": torch.ones(1), "run": Path("x")}, {}, "it holds more than tensors"),
        ({"proj_out.bias": torch.ones(1)}, dict(_use_new_zipfile_serialization=False), "mmap can"),
    ],
)
def test_a_pickle_that_is_not_safe_to_load(tmp_path, content, options, said):
    torch.save(content, tmp_path / "wan.pth", **options)
    line = refusal(tmp_path / "wan.pth")
    assert said in line and line.endswith(": give the weights as safetensors")


def test_a_pickle_of_something_else(tmp_path):
    torch.save(OrderedDict(model={"proj_out.bias": torch.ones(1)}), tmp_path / "wan.pt")
    assert "something else than a dict of tensors" in refusal(tmp_path / "wan.pt")
    torch.save({"proj_out.bias": torch.ones(1, dtype=torch.int8)}, tmp_path / "wan.pt")
    assert "proj_out.bias is stored as torch.int8" in refusal(tmp_path / "wan.pt")


def test_nothing_there(tmp_path):
    for path, said in (("none", "no such file or folder"), ("", f"holds no {STEM}")):
        with pytest.raises(FileNotFoundError, match=said):
            load(debug(), tmp_path / path)


def test_a_dtype_for_a_model_that_has_one(folder):
    with pytest.raises(ValueError, match="dtype=torch.bfloat16 would change nothing"):
        load(debug().build(), folder, dtype=torch.bfloat16)


def test_nothing_is_overwritten(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for target in (folder, folder / FILE):
        with pytest.raises(ValueError, match="exists and is not an empty folder: give a new one"):
            save(awake(debug(), seed=1), target)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["saved"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    save(awake(debug()), tmp_path / "empty")
    assert load(debug(), tmp_path / "empty")


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    shards = []

    def fill_the_disk(tensors, path, metadata):
        shards.append(path)
        save_file(tensors, path, metadata)
        if len(shards) == 2:
            raise OSError("No space left on device")

    monkeypatch.setattr("models.wan.checkpoint.save_file", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        save(awake(debug()), tmp_path / "new", max_shard_bytes=100_000)
    assert len(shards) == 2 and not [*tmp_path.iterdir()]


def test_what_cannot_be_saved(tmp_path, monkeypatch):
    with torch.device("meta"):
        meta = debug().build()
    with pytest.raises(ValueError, match="weights are on the meta device"):
        save(meta, tmp_path / "new")
    with pytest.raises(ValueError, match="format is 'fp8'; give one of wan, diffusers"):
        save(debug().build(), tmp_path / "new", "fp8")  # type: ignore[arg-type]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("", (), dict(free=1000)))
    with pytest.raises(ValueError, match="bytes, and only 1,000 are free there"):
        save(debug().build(), tmp_path / "new")
    assert not [*tmp_path.iterdir()]
