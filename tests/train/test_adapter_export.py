"""The adapter of a run by itself: for diffusers, for the generator, and nothing else in it."""

import shutil

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from trainer_runs import run
from wan_runs import QUIET, adapting, awake_wan, batch_for, inputs, lora

from flexsparse.diffusers import VSA, load_gates, sparsify
from models.attention import VSA as SLOT
from models.wan import adapter, debug
from models.wan.adapter import merge_adapter, save_adapter
from models.wan.checkpoint import CheckpointError, load, save
from models.wan.generate.__main__ import main as generate
from train import export

LORA, GATES = "pytorch_lora_weights.safetensors", "gates.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with adapters and gates; its weights merged, its adapter and the dense model."""
    folder = tmp_path_factory.mktemp("adapter")
    given = inputs(folder)
    config = lora("debug_vsa_adapt", folder / "run", given, steps=4)
    run(config)
    for name, options in dict(merged=[], adapter=["--adapter"]).items():
        given_to = ["--run", config.dump_folder, "--out", str(folder / name)]
        assert export.main([*given_to, *options]) == 0
    save(awake_wan(), folder / "dense")
    return config, folder


def transformer(folder, method=None):
    model = WanTransformer3DModel.from_pretrained(folder)
    if method:
        sparsify(model, method)
    return model


def test_it_is_small_and_named_as_peft_does(made):
    config, folder = made
    found = load_file(folder / "adapter" / LORA)
    layers = [f"transformer.blocks.{n}.attn1.to_{x}" for n in range(2) for x in ("q", "k", "v")]
    layers += [f"transformer.blocks.{n}.attn1.to_out.0" for n in range(2)]
    assert found.keys() == {f"{x}.lora_{ab}.weight" for x in layers for ab in "AB"}
    assert all(x.any() and 4 in x.shape for x in found.values())
    assert len(load_file(folder / "adapter" / GATES)) == 4
    size = sum(file.stat().st_size for file in (folder / "adapter").iterdir())
    assert size < (folder / "merged/diffusion_pytorch_model.safetensors").stat().st_size / 4


def test_diffusers_takes_it_with_its_gates(made):
    config, folder = made
    x, t, context = batch_for(awake_wan())
    given = dict(hidden_states=x, timestep=1000 * t, encoder_hidden_states=context)
    method = VSA(sparsity=0.0, tile=(2, 2, 2))  # a choice of tiles would magnify what is rounded
    parts = dict(tokenizer=None, text_encoder=None, vae=None, scheduler=None)
    pipe = WanPipeline(transformer=transformer(folder / "dense"), **parts)
    pipe.load_lora_weights(folder / "adapter")
    model = pipe.transformer
    sparsify(model, method)
    load_gates(model, folder / "adapter")
    merged = transformer(folder / "merged", method)
    with torch.no_grad():
        plain = transformer(folder / "dense", method)
        found, due, dense = (m(**given).sample for m in (model, merged, plain))
    assert (found - due).abs().max() < 1e-3 * (due - dense).abs().max()  # of what it does


def test_our_own_loader_merges_it(made):
    config, folder = made
    due = load(config.model, folder / "merged").state_dict()
    model = load(config.model, folder / "dense", new_gates=True)
    dense = {n: p.clone() for n, p in model.state_dict().items()}
    merge_adapter(model, folder / "adapter")
    for name, weight in model.state_dict().items():
        adapted = any(f"self_attn.{x}.weight" in name for x in "qkvo")
        assert torch.equal(weight, dense[name]) == (not adapted and "slot" not in name)
        if not adapted:
            assert torch.equal(weight, due[name])
        assert (weight - due[name]).abs().max() <= 2**-22 * due[name].abs().max()


def test_other_names_and_an_alpha_are_read(made, tmp_path):
    """Of Wan's own format, as ComfyUI has it."""
    config, folder = made
    theirs = {}
    for key, x in load_file(folder / "adapter" / LORA).items():
        key = key.replace("attn1.to_out.0", "self_attn.o").replace("attn1.to_", "self_attn.")
        key = key.replace("transformer.", "diffusion_model.")
        theirs[key] = x / 2 if "lora_B" in key else x
        theirs[key.partition(".lora_")[0] + ".alpha"] = torch.tensor(8.0)  # of rank 4
    save_file(theirs, tmp_path / "theirs.safetensors")
    models = [load(config.model, folder / "dense", new_gates=True) for _ in range(2)]
    shutil.copy(folder / "adapter" / LORA, tmp_path / "ours.safetensors")  # without its gates
    merge_adapter(models[0], tmp_path / "ours.safetensors")
    merge_adapter(models[1], tmp_path / "theirs.safetensors")
    a, b = (model.state_dict() for model in models)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_an_adapter_of_another_model_changes_nothing(made, tmp_path):
    config, folder = made
    found = load_file(folder / "adapter" / LORA)
    first = next(key for key in found if "lora_A" in key)
    model = load(config.model, folder / "dense", new_gates=True)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    for change, words in [
        ({first: None}, r"is \[64, 64\], and its adapter is \[\[64, 4\]\]: due are"),
        ({first: torch.zeros(4, 63)}, r"\[64, 4\], \[4, 63\]"),
        ({"transformer.blocks.7.attn1.to_q.lora_A.weight": torch.zeros(4, 64)}, "no adapter of th"),
    ]:
        tensors = {key: x for key, x in (found | change).items() if x is not None}
        save_file(tensors, tmp_path / "a.safetensors")
        with pytest.raises(CheckpointError, match=words):
            merge_adapter(model, tmp_path / "a.safetensors")
        assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())


def test_lora_and_gates_are_there_together_or_not_at_all(tmp_path, monkeypatch):
    config = debug(attention=SLOT(adapt=True))
    gates = {n: torch.ones_like(p) for n, p in config.build().named_parameters() if ".slot." in n}
    given = {"blocks.0.self_attn.q": (torch.zeros(4, 64), torch.zeros(64, 4))}, gates

    def full(tensors, file, metadata):
        if file.name == GATES:
            raise OSError("No space left on device")
        save_file(tensors, file, metadata)

    monkeypatch.setattr(adapter, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_adapter(*given, tmp_path / "out")
    assert not [*tmp_path.iterdir()]
    monkeypatch.undo()
    save_adapter(*given, tmp_path / "out")
    for path in (tmp_path / "out", tmp_path / "out" / LORA):
        model = config.build()
        merge_adapter(model, path)
        assert all((model.get_parameter(name) == 1).all() for name in gates)


def test_what_has_no_adapter_is_refused_in_a_line(made, tmp_path, capsys):
    config, folder = made
    own = ["--run", config.dump_folder, "--out", str(tmp_path / "out"), "--adapter"]
    capsys.readouterr()
    assert export.main([*own, "--format", "wan"]) == 1
    assert "--adapter is for --format diffusers, this is wan" in capsys.readouterr().out
    plain = adapting("debug_bsa_adapt", tmp_path / "run", inputs(tmp_path), steps=1)
    plain.validation = QUIET
    run(plain)
    own[1] = plain.dump_folder
    assert export.main(own) == 1
    assert "trained all weights, without lora.rank" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_the_generator_takes_it(made, tmp_path, capsys):
    config, folder = made
    save_file({"prompt_embeds": torch.randn(7, 32)}, tmp_path / "text.safetensors")

    def made_by(out, *options):
        paths = ["--prompt-embeds", str(tmp_path / "text.safetensors"), "--out", str(out)]
        small = ["--size", "9x48x80", "--steps", "2", "--guidance", "1", "--attention", "vsa"]
        return generate([*paths, *small, "--sparsity", "0", "--tile", "2x2x2", *options])

    dense = ["--checkpoint", str(folder / "dense")]
    adapter = ["--adapter", str(folder / "adapter")]
    assert made_by(tmp_path / "a.safetensors", *dense, *adapter) == 0
    assert made_by(tmp_path / "b.safetensors", "--checkpoint", str(folder / "merged")) == 0
    assert made_by(tmp_path / "c.safetensors", *dense) == 0
    a, b, c = (load_file(tmp_path / f"{x}.safetensors")["latent"] for x in "abc")
    assert (a - b).abs().max() < 1e-3 * (a - c).abs().max()
    capsys.readouterr()
    assert made_by(tmp_path / "d.safetensors", *dense, "--adapter", str(tmp_path / "none")) == 2
    assert made_by(tmp_path / "d.safetensors", *dense, *adapter, "--attention", "bsa") == 2
    lacking, dense_slot = capsys.readouterr().err.strip().splitlines()
    assert "none: there is no" in lacking
    assert "adapter/gates.safetensors has VSA's gates, and --attention bsa" in dense_slot
