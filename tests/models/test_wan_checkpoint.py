"""Wan's checkpoints: nothing is lost or changed on the way, in any format, for any size."""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import seeds
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from wan_checkpoints import KINDS, STEM, assert_same, awake, configs, read

from benchmarks.wan_loading import measure, write_random
from models.attention import Dense
from models.wan import debug
from models.wan.checkpoint import load, read_config, save
from models.wan.formats import Format, to_json, to_key

FORMATS = st.sampled_from(get_args(Format))


@settings(max_examples=15)
@given(configs(), FORMATS, st.sampled_from([3_000, 20_000, 10**9]), seeds)
def test_a_round_trip_changes_no_bit(config, format, max_shard_bytes, seed):
    model = awake(config, seed)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "new", "checkpoint")
        save(model, folder, format, max_shard_bytes)
        found = read_config(folder)
        loaded = load(replace(found, attention=config.attention), folder)
        assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]
        sharded = (folder / f"{STEM}.safetensors.index.json").exists()
        shards = [load_file(path).values() for path in folder.glob("*.safetensors")]
    assert_same(loaded.state_dict(), model.state_dict())
    assert found == replace(config, attention=Dense(), video=found.video)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    sizes = [sum(x.nbytes for x in shard) for shard in shards]
    assert sharded == (len(shards) > 1) == (sum(sizes) > max_shard_bytes)
    assert all(s <= max_shard_bytes for s, shard in zip(sizes, shards) if len(shard) > 1)


@settings(max_examples=10)
@given(configs((Dense(),)))
def test_names_and_shapes_are_those_of_diffusers(config):
    with torch.device("meta"):
        ours, theirs = (
            config.build(),
            WanTransformer3DModel.from_config(to_json(config, "diffusers")),
        )
    shapes = {to_key(name, "diffusers"): x.shape for name, x in ours.named_parameters()}
    assert shapes == {key: x.shape for key, x in theirs.state_dict().items()}


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_diffusers_converts_our_wan_format_to_our_diffusers_format(tmp_path, kind):
    model = awake(debug(**KINDS[kind]))
    save(model, tmp_path / "wan", "wan")
    save(model, tmp_path / "diffusers", "diffusers")
    converted = convert_wan_transformer_to_diffusers(read(tmp_path / "wan"))
    assert_same(converted, read(tmp_path / "diffusers"))


def test_a_config_of_wans_own_has_its_keys(tmp_path):
    save(debug(**KINDS["i2v"]).build(), tmp_path / "i2v", "wan")
    said = json.loads((tmp_path / "i2v" / "config.json").read_text())
    due = dict(model_type="i2v", dim=64, ffn_dim=128, num_heads=2, num_layers=2, in_dim=36)
    due |= dict(out_dim=16, freq_dim=64, text_len=512, eps=1e-6, _class_name="WanModel")
    due |= dict(text_dim=32, patch_size=[1, 2, 2], qk_norm=True, cross_attn_norm=True)
    assert said.items() >= due.items()
    save(debug().build(), tmp_path / "t2v", "wan")
    assert json.loads((tmp_path / "t2v" / "config.json").read_text())["model_type"] == "t2v"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_shard_bytes", [50_000, 10**9])
def test_diffusers_loads_what_we_save(tmp_path, kind, max_shard_bytes):
    model = awake(debug(**KINDS[kind])).float()
    save(model, tmp_path / "new", max_shard_bytes=max_shard_bytes)
    theirs, told = WanTransformer3DModel.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not any(told.values()), told
    ours = {to_key(name, "diffusers"): x for name, x in model.state_dict().items()}
    assert_same(ours, theirs.state_dict())
    theirs.save_pretrained(tmp_path / "theirs")
    files = [next((tmp_path / name).glob("*.safetensors")) for name in ("new", "theirs")]
    ours, due = (safe_open(file, "pt").metadata() for file in files)
    assert ours == due


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shard", ["50KB", "1GB"])
def test_we_load_what_diffusers_saves(tmp_path, kind, shard):
    settings = to_json(debug(**KINDS[kind]), "diffusers")
    theirs = WanTransformer3DModel.from_config(settings).bfloat16()
    theirs.save_pretrained(tmp_path / "transformer", max_shard_size=shard)
    config = read_config(tmp_path)  # a pipeline's folder
    assert config == debug(video=config.video, **KINDS[kind])
    ours = load(config, tmp_path).state_dict()
    assert_same({to_key(k, "diffusers"): x for k, x in ours.items()}, theirs.state_dict())


def test_a_pickle_of_tensors_is_read(tmp_path):
    saved = awake(debug())
    weights = {to_key(name, "wan"): x for name, x in saved.state_dict().items()}
    torch.save(weights, tmp_path / "wan.pth")
    assert_same(load(debug(), tmp_path / "wan.pth").state_dict(), saved.state_dict())
    torch.save(weights, tmp_path / f"{STEM}.bin")
    assert_same(load(debug(), tmp_path).state_dict(), saved.state_dict())


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model."])
@pytest.mark.parametrize("format", get_args(Format))
@pytest.mark.parametrize("others", [{}, {"vae.weight": torch.ones(2), "clip.bias": torch.ones(1)}])
def test_the_prefix_of_comfyuis_keys_is_left_out(tmp_path, caplog, prefix, format, others):
    saved = awake(debug(dim=256))
    weights = {prefix + to_key(name, format): x for name, x in saved.state_dict().items()}
    save_file(weights | others, tmp_path / "wan.safetensors")
    torch.save(weights | others, tmp_path / "wan.pth")
    for file in ("wan.safetensors", "wan.pth"):
        config = read_config(tmp_path / file)
        caplog.clear()
        assert_same(load(config, tmp_path / file).state_dict(), saved.state_dict())
        (said,) = caplog.messages
        left = ", without 2 tensors that don't have it" if others else ""
        assert said == f"{tmp_path / file}: keys are read without {prefix}{left}"


def test_without_a_config_shapes_say_all_but_the_heads(tmp_path):
    config = debug(dim=256, heads=2, **KINDS["flf2v"])
    save(config.build(), tmp_path / "new", "wan")
    (tmp_path / "new" / "config.json").unlink()
    assert read_config(tmp_path / "new") == replace(
        config, video=read_config(tmp_path / "new").video
    )


def test_norm_added_q_is_ignored_as_in_diffusers(tmp_path):
    saved = awake(debug(**KINDS["i2v"]))
    save(saved, tmp_path / "new")
    extra = {"blocks.0.attn2.norm_added_q.weight": torch.ones(64)}
    save_file(read(tmp_path / "new") | extra, tmp_path / "new" / f"{STEM}.safetensors")
    assert_same(load(saved.config, tmp_path / "new").state_dict(), saved.state_dict())


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_loading_takes_little_more_memory_than_the_weights(tmp_path):
    config = debug(dim=768, heads=6, layers=3, ffn=3072)
    written = write_random(config, tmp_path / "new", "wan", torch.float32)
    used = measure(tmp_path / "new")
    assert used["sum"] == written
    assert used["weights"] > 120e6
    assert used["peak"] <= 1.15 * used["weights"]
    assert used["kept"] >= 0.95 * used["weights"]  # they are no pages of the file
