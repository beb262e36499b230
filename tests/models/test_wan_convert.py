"""Wan's own checkpoints and FastVideo's as pipelines of diffusers, and back."""

import json
import shutil

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from wan_checkpoints import assert_same, awake, read

from flexsparse.diffusers import VSA, gates_of, save_gates, sparsify
from models.attention import VSA as SLOT
from models.wan import debug
from models.wan.checkpoint import save
from models.wan.convert import main
from models.wan.experts import times_of
from models.wan.formats import to_key

PAIR, OWN_PAIR = ("transformer", "transformer_2"), ("high_noise_model", "low_noise_model")


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A pipeline's parts beside its transformer, which is of another size."""
    folder = tmp_path_factory.mktemp("pipeline")
    sizes = dict(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, attn_scales=[])
    parts = dict(
        vae=AutoencoderKLWan(**sizes, temperal_downsample=[False, True, True]),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )
    none = dict(tokenizer=None, text_encoder=None)
    small = dict(num_attention_heads=1, attention_head_dim=16, num_layers=1, ffn_dim=8)
    model = WanTransformer3DModel(**small, text_dim=8, freq_dim=8)
    WanPipeline(**parts, **none, transformer=model).save_pretrained(folder / "text")
    images = dict(image_processor=None, image_encoder=None)
    pictures = WanImageToVideoPipeline(**parts, **none, **images, transformer=model)
    pictures.save_pretrained(folder / "pictures")
    return folder


def weights_of(config):
    """A model, and its weights by diffusers' names."""
    model = awake(config)
    return model, {to_key(n, "diffusers"): x.detach() for n, x in model.named_parameters()}


@pytest.mark.parametrize("copy", [False, True])
def test_a_checkpoint_becomes_a_pipeline_with_its_gates(others, tmp_path, copy):
    model, weights = weights_of(debug(attention=SLOT(adapt=True)))
    save(model, tmp_path / "own", "wan")
    given = [str(tmp_path / "own"), str(tmp_path / "new"), "--pipeline", str(others / "text")]
    assert main([*given, *["--copy"] * copy]) == 0
    assert_same(read(tmp_path / "new" / "transformer"), weights)
    assert (tmp_path / "new" / "vae").is_symlink() == (not copy)
    none = dict(tokenizer=None, text_encoder=None)
    pipe = WanPipeline.from_pretrained(tmp_path / "new", **none)
    assert pipe.scheduler.config.shift == 7.0 and pipe.vae.config.z_dim == 16
    assert pipe.transformer_2 is None and pipe.transformer.config.num_layers == 2
    sparsify(pipe.transformer, VSA())  # finds its gates
    found = {n: x for n, x in gates_of(pipe.transformer).items()}
    assert len(found) == 4
    for name, gate in found.items():
        key = name.replace("attn1.slot.gate_coarse", "to_gate_compress")
        assert torch.equal(gate.bfloat16(), weights[key])


def test_a_pair_becomes_a_pipeline_of_two(others, tmp_path):
    kinds = dict(in_channels=36, out_channels=16)
    both = [awake(debug(**kinds), seed) for seed in (0, 1)]
    for model, name in zip(both, OWN_PAIR):
        save(model, tmp_path / "own" / name, "wan")
    source, new = str(tmp_path / "own"), tmp_path / "new"
    assert main([source, str(new), "--pipeline", str(others / "pictures")]) == 0
    none = dict(tokenizer=None, text_encoder=None, image_encoder=None, image_processor=None)
    pipe = WanImageToVideoPipeline.from_pretrained(new, **none)
    assert pipe.config.boundary_ratio == 0.9  # of pictures
    for model, name in zip(both, PAIR):
        theirs = getattr(pipe, name).state_dict()
        ours = {to_key(n, "diffusers"): x for n, x in model.named_parameters()}
        assert all(torch.equal(theirs[n].to(x.dtype), x) for n, x in ours.items())
    assert [times_of(new / name) for name in PAIR] == [(0.9, 1), (0, 0.9)]
    (new / "transformer_2").rename(tmp_path / "alone")  # which no name tells
    assert times_of(tmp_path / "alone") == (0, 0.9)
    (tmp_path / "alone").rename(new / "transformer_2")
    assert main([str(new), str(tmp_path / "back"), "--to", "wan"]) == 0
    for name in OWN_PAIR:
        assert_same(read(tmp_path / "back" / name), read(tmp_path / "own" / name))


def test_a_transformer_alone_goes_there_and_back(tmp_path, capsys):
    model, weights = weights_of(debug(attention=SLOT()))  # with the fine gate that VSA trained
    save(model, tmp_path / "own", "wan")
    paths = [tmp_path / name for name in ("own", "theirs", "again")]
    assert main([*map(str, paths[:2])]) == 0
    assert "a transformer alone; --pipeline DIR adds the rest" in capsys.readouterr().out
    assert_same(read(paths[1]), weights)
    assert main([*map(str, paths[1:]), "--to", "wan"]) == 0
    assert_same(read(paths[2]), read(paths[0]))
    assert (paths[2] / "config.json").read_text() == (paths[0] / "config.json").read_text()


@pytest.mark.parametrize("beside", [None, 10**9, 10**5])
def test_gates_that_diffusers_saved_come_back(tmp_path, beside):
    """In the words of a sparse model, in its own file or in that of save_gates, beside one file of
    weights or shards."""
    save(awake(debug()), tmp_path / "dense", max_shard_bytes=beside or 10**9)
    model = WanTransformer3DModel.from_pretrained(tmp_path / "dense")
    sparsify(model, VSA())
    with torch.no_grad():
        for number, gate in enumerate(gates_of(model).values()):
            gate.fill_(number)
    if beside:
        shutil.copytree(tmp_path / "dense", tmp_path / "sparse")
        save_gates(model, tmp_path / "sparse")
    else:
        model.save_pretrained(tmp_path / "sparse")
    assert main([str(tmp_path / "sparse"), str(tmp_path / "own"), "--to", "wan"]) == 0
    found = read(tmp_path / "own")
    for number, name in enumerate(gates_of(model)):
        key = name.replace("attn1.slot.gate_coarse", "to_gate_compress")
        assert (found[key] == number).all()


def edited(pipeline, folder, **changes):
    shutil.copytree(pipeline, folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | changes))
    return str(folder)


def test_a_pipeline_of_the_same_transformer_is_taken(others, tmp_path):
    save(awake(debug()), tmp_path / "own", "wan")
    other = edited(others / "text", tmp_path / "other", _class_name="WanVideoToVideoPipeline")
    assert main([str(tmp_path / "own"), str(tmp_path / "new"), "--pipeline", other]) == 0


def test_a_place_that_cannot_be_is_refused_before_weights_are_read(
    others, tmp_path, capsys, monkeypatch
):
    save(awake(debug()), tmp_path / "own", "wan")
    for name in OWN_PAIR:
        save(awake(debug()), tmp_path / "pair" / name, "wan")
    monkeypatch.setattr("models.wan.convert.load", lambda *a, **k: pytest.fail("loaded"))
    place = str(tmp_path / "own" / "config.json" / "new")
    for source, options in [
        ("own", []),
        ("own", ["--to", "wan"]),
        ("own", ["--pipeline", str(others / "text")]),
        ("pair", []),
    ]:
        assert main([str(tmp_path / source), place, *options]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ") and "config.json" in line


def test_what_cannot_be_is_one_line(others, tmp_path, capsys):
    save(awake(debug()), tmp_path / "own", "wan")
    save(awake(debug(in_channels=36)), tmp_path / "pictures", "wan")
    save(awake(debug(in_channels=48, out_channels=48)), tmp_path / "wide", "wan")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    edited(others / "text", tmp_path / "ltx", _class_name="LTXPipeline")
    control = dict(transformer=["diffusers", "WanVACETransformer3DModel"])
    edited(others / "text", tmp_path / "vace", _class_name="WanVACEPipeline", **control)
    shutil.copytree(others / "text", tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "scheduler")
    text = str(others / "text")
    before = sorted(tmp_path.rglob("*"))
    for source, out, options, words in [
        ("none", "new", [], "no such file or folder"),
        ("own", "full", [], "full exists and is not an empty folder"),
        ("own", "new", ["--to", "wan", "--pipeline", text], "--to wan makes none"),
        ("own", "new", ["--pipeline", str(tmp_path / "own")], "it has no model_index.json"),
        ("own", "new", ["--pipeline", str(tmp_path / "vace")], "is a WanVACEPipeline with ["),
        ("own", "new", ["--pipeline", str(tmp_path / "ltx")], "is a LTXPipeline with ["),
        ("own", "new", ["--pipeline", str(tmp_path / "bare")], "lacks scheduler"),
        ("own", "new", ["--pipeline", str(others / "pictures")], "wants a WanPipeline"),
        ("pictures", "new", ["--pipeline", text], "wants a WanImageToVideoPipeline"),
        ("wide", "new", ["--pipeline", text], "z_dim 16, and this checkpoint wants 48"),
    ]:
        capsys.readouterr()
        assert main([str(tmp_path / source), str(tmp_path / out), *options]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line, line
    assert sorted(tmp_path.rglob("*")) == before
