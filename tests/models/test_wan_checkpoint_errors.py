"""Wan's checkpoints: what is wrong is said in one line, before anything is allocated."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from wan_checkpoints import KINDS, STEM, awake, change, refusal

from models.attention import VSA
from models.wan import debug
from models.wan.checkpoint import CheckpointError, load, read_config, save
from models.wan.experts import times_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(awake(debug()), tmp_path / "saved")
    return tmp_path / "saved"


def test_keys_that_are_missing_and_left_over_are_one_error(folder):
    change(folder, ("attn1.to_q.", "0.ffn.net.2.bias"), lora_A=torch.ones(1), lora_B=torch.ones(1))
    assert refusal(folder) == (
        "PATH does not fit the model: keys missing: 5 (2 of blocks.*.attn1.to_q.weight, "
        "2 of blocks.*.attn1.to_q.bias, blocks.0.ffn.net.2.bias); "
        "keys left over: 2 (lora_A, lora_B)"
    )
    change(folder, ("attn2.", "attn1."))
    assert "keys missing: 41 (" in (line := refusal(folder)) and "and 17 more)" in line


def test_the_model_is_as_it_was(folder):
    change(folder, ("proj_out.bias",))
    model = awake(debug(), seed=1)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"keys missing: 1 \(proj_out.bias\)"):
        load(model, folder)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_shapes_that_differ(folder):
    change(folder, **{"blocks.1.norm2.bias": torch.ones(65)})
    assert "shapes that differ: 1 (blocks.1.norm2.bias [65], not [64])" in refusal(folder)


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(dim=96, heads=3), "dim 64, not 96, heads 2, not 3"),
        (dict(heads=4), "heads 2, not 4"),
        (dict(eps=1e-5), "eps 1e-06, not 1e-05"),
        (dict(layers=3), "layers 2, not 3"),
        (dict(ffn=64, text_dim=16), "ffn 128, not 64"),
        (KINDS["i2v"], "in_channels 16, not 36"),
        (KINDS["flf2v"], "pos_embed_seq_len None, not 6"),
    ],
)
def test_another_size_or_kind(folder, changes, said):
    line = refusal(folder, debug(**changes))
    assert "is of another Wan than the model" in line and said in line
    assert "read_config" in line


def test_image_to_video_is_not_text_to_video(tmp_path):
    save(awake(debug(**KINDS["i2v"])), tmp_path / "i2v", "wan")
    assert "image_dim 48, not None" in refusal(tmp_path / "i2v")


@pytest.mark.parametrize("add", [{}, {"patch_embedding.weight": torch.ones(8, 4, 2, 2)}])
def test_another_family(tmp_path, add):
    weights = {f"model.layers.{n}.weight": torch.ones(1) for n in range(9)}
    save_file(weights | add, tmp_path / "other.safetensors")
    line = refusal(tmp_path / "other.safetensors")
    assert f"PATH is no Wan transformer: its {9 + len(add)} tensors are model.layers.0" in line
    assert f"and {5 + len(add)} more" in line


def test_a_config_of_another_class(folder):
    settings = json.loads((folder / "config.json").read_text())
    settings["_class_name"] = "WanVACETransformer3DModel"
    (folder / "config.json").write_text(json.dumps(settings))
    assert refusal(folder) == (
        "PATH is a WanVACETransformer3DModel: give a WanModel or a WanTransformer3DModel"
    )


def test_a_config_that_the_weights_do_not_keep(folder):
    change(folder, ("blocks.1.",))
    assert "the weights have layers 1, not 2 as config.json says" in refusal(folder)
    with pytest.raises(CheckpointError, match="layers 1, not 2"):
        read_config(folder)


def test_heads_that_make_another_width(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | dict(attention_head_dim=48)))
    assert "the weights have dim 64, not 96 as config.json says" in refusal(folder)


@pytest.mark.parametrize("format", ["wan", "diffusers"])
@pytest.mark.parametrize(
    "change, said",
    [
        (dict(patch_size=[1, 4, 1]), "patch (1, 2, 2), not (1, 4, 1) as config.json says"),
        (dict(patch_size=2), "patch (1, 2, 2), not 2 as config.json says"),
        (dict(qk_norm=None), "config.json has qk_norm null: no model of Wan 2.1's is so"),
        (dict(qk_norm="rms_norm"), 'config.json has qk_norm "rms_norm"'),
        (dict(cross_attn_norm=False, text_len=256), "has cross_attn_norm false, text_len 256"),
        (dict(window_size=[4, 4]), "config.json has window_size [4, 4]"),
    ],
)
def test_a_config_that_we_do_not_compute(tmp_path, format, change, said):
    save(awake(debug()), tmp_path / "a", format)
    settings = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps(settings | change))
    assert said in refusal(tmp_path / "a")
    with pytest.raises(CheckpointError):
        read_config(tmp_path / "a")


@pytest.mark.parametrize(
    "format, changes",
    [
        ("diffusers", dict(eps="x")),
        ("diffusers", dict(eps=True)),
        ("diffusers", dict(eps=float("nan"))),
        ("diffusers", dict(eps=-1e-6)),
        ("diffusers", dict(num_attention_heads=2, attention_head_dim="32")),
        ("diffusers", dict(attention_head_dim=[32])),
        ("diffusers", dict(image_dim=0)),
        ("wan", dict(num_heads="2")),
        ("wan", dict(num_heads=0)),
        ("wan", dict(num_layers=2.0)),
        ("wan", dict(ffn_dim=True)),
        ("wan", dict(patch_size=[1, "2", 2])),
    ],
)
def test_a_config_whose_numbers_are_none(tmp_path, format, changes):
    save(awake(debug()), tmp_path / "a", format)
    settings = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps(settings | changes))
    *_, (key, value) = changes.items()
    said = f"config.json has {key} {json.dumps(value)}: sizes are whole numbers from 1 up, eps a"
    assert said in refusal(tmp_path / "a")
    with pytest.raises(CheckpointError, match="whole numbers"):
        read_config(tmp_path / "a")


@pytest.mark.parametrize("name", [3, None, [], {}, "", ".", "../"])
def test_an_index_that_names_no_file(folder, name):
    index = folder / f"{STEM}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"b": f"{STEM}.safetensors", "a": name}}))
    said = f"PATH/{index.name} names {json.dumps(name)} as a shard, which is no file's name"
    assert said in refusal(folder)


@pytest.mark.parametrize("named", [False, True])
def test_a_shard_that_is_a_folder(folder, named):
    (folder / f"{STEM}-2.safetensors").mkdir()
    if named:
        index = {"weight_map": {"a": f"{STEM}-2.safetensors"}}
        (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index))
    assert f"PATH/{STEM}-2.safetensors is no file" in refusal(folder)


def test_a_config_that_says_what_we_compute(tmp_path):
    save(awake(debug()), tmp_path / "a", "wan")
    settings = json.loads((tmp_path / "a" / "config.json").read_text())
    settings |= dict(window_size=[-1, -1], qk_norm=True, patch_size=[1, 2, 2])
    (tmp_path / "a" / "config.json").write_text(json.dumps(settings))
    assert load(read_config(tmp_path / "a"), tmp_path / "a")


def test_sizes_that_nothing_says(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="dim 64 is no multiple of 128, so how many heads"):
        read_config(folder)
    change(folder, ("text_embedder", "time_embedder"))
    with pytest.raises(CheckpointError, match="no weight says freq_dim, text_dim"):
        read_config(folder)


def test_a_dense_checkpoint_has_no_gates(folder):
    config = debug(attention=VSA(adapt=True))
    assert refusal(folder, config) == (
        "PATH does not fit the model: gates missing: 4 (2 of blocks.*.to_gate_compress.weight, "
        "2 of blocks.*.to_gate_compress.bias), new_gates=True starts new ones"
    )


def test_gates_that_only_some_layers_have_are_no_new_gates(folder):
    gate = {"blocks.0.to_gate_compress.weight": torch.ones(64, 64)}
    change(folder, **gate, **{"blocks.0.to_gate_compress.bias": torch.ones(64)})
    line = refusal(folder, debug(attention=VSA(adapt=True)), new_gates=True)
    assert "keys missing: 2 (blocks.1.to_gate_compress.weight, blocks.1.to_gate_" in line


def test_a_dense_model_takes_no_gates(tmp_path):
    save(awake(debug(attention=VSA())), tmp_path / "vsa")
    line = refusal(tmp_path / "vsa")
    for gate in ("compress.bias", "compress.weight", "fine.bias", "fine.weight"):
        assert f"2 of blocks.*.to_gate_{gate}" in line
    assert "gates left over: 8 (" in line and "give the model attention=VSA()" in line


@pytest.mark.parametrize(
    "name",
    ["safetensors", "bin", "safetensors.index.json", "bin.index.json", "pth", "config.json"],
)
def test_a_pointer_of_git_lfs_in_place_of_a_file_is_named(tmp_path, name):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 134217728\n"
    file = tmp_path / f"diffusion_pytorch_model.{name}"
    if name == "config.json":
        save(debug().build(), tmp_path)
        file = tmp_path / name
    file.write_bytes(pointer)
    with pytest.raises(CheckpointError, match=rf"{name} is a pointer of Git LFS .* git lfs pull"):
        read_config(file if name == "pth" else tmp_path)


def test_a_pointer_in_place_of_a_pipelines_index_is_named(tmp_path):
    save(debug().build(), tmp_path / "transformer")
    (tmp_path / "model_index.json").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    for read, path in ((read_config, tmp_path), (times_of, tmp_path / "transformer")):
        with pytest.raises(CheckpointError, match=r"model_index.json is a pointer of Git LFS"):
            read(path)
