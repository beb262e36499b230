"""The adapter of a run by itself: for diffusers, and nothing else in it."""

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from trainer_runs import run
from wan_runs import QUIET, adapting, awake_wan, batch_for, inputs, lora

from flexsparse.diffusers import VSA, load_gates, sparsify
from models.attention import VSA as SLOT
from models.wan import adapter, debug
from models.wan.adapter import save_adapter
from models.wan.checkpoint import save
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
    found = load_file(tmp_path / "out" / GATES)
    assert len(found) == len(gates) and all((x == 1).all() for x in found.values())


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
