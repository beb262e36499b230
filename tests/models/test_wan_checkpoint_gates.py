"""Wan's checkpoints: gates that are there or not, and into what memory weights go."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor
from wan_checkpoints import STEM, assert_same, awake, read

from flexsparse.diffusers import sparsify
from models.attention import VSA, Dense
from models.wan import debug
from models.wan.checkpoint import load, save, with_gates_of
from models.wan.formats import to_key


def fastvideo(folder: Path) -> dict[str, Tensor]:
    """As FastVideo writes VSA checkpoints: diffusers' keys, and one gate for each block."""
    save(awake(debug()), folder)
    weights = read(folder)
    for n in range(2):
        weights[f"blocks.{n}.to_gate_compress.weight"] = torch.randn(64, 64).bfloat16()
        weights[f"blocks.{n}.to_gate_compress.bias"] = torch.randn(64).bfloat16()
    save_file(weights, folder / f"{STEM}.safetensors")
    return weights


def test_fastvideos_gate_is_the_coarse_gate(tmp_path):
    theirs = fastvideo(tmp_path / "theirs")
    model = load(debug(attention=VSA(adapt=True)), tmp_path / "theirs")
    state = model.state_dict()
    assert_same({to_key(name, "diffusers"): x for name, x in state.items()}, theirs)
    key = "layers.1.self_attn.slot.gate_coarse.bias"
    assert torch.equal(state[key], theirs["blocks.1.to_gate_compress.bias"])
    save(model, tmp_path / "ours")
    assert_same(read(tmp_path / "ours"), theirs)


def test_a_fine_gate_that_is_not_there_starts_as_the_slot_starts_it(tmp_path):
    theirs = fastvideo(tmp_path / "theirs")
    slot: Any = load(debug(attention=VSA()), tmp_path / "theirs", new_gates=True).layers["1"]
    slot = slot.self_attn.slot
    assert torch.equal(slot.gate_coarse.weight, theirs["blocks.1.to_gate_compress.weight"])
    assert (slot.gate_fine.bias == 1).all() and slot.gate_fine.weight.std() > 0
    assert slot.gate_fine.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_new_gates_leave_a_dense_checkpoint_as_it_is(tmp_path, dtype):
    dense = awake(debug())
    save(dense, tmp_path / "dense", "wan")
    config = debug(attention=VSA(adapt=True))
    state = load(config, tmp_path / "dense", new_gates=True, dtype=dtype).state_dict()
    gates = {name: state.pop(name) for name in [*state] if ".slot." in name}
    assert len(gates) == 4 and not any(gate.any() for gate in gates.values())
    assert {gate.dtype for gate in gates.values()} == {dtype or torch.bfloat16}
    assert_same(state, dense.to(dtype).state_dict())


def test_a_model_is_filled_where_it_is_and_the_rest_gets_memory(tmp_path):
    saved = awake(debug())
    save(saved, tmp_path / "new")
    model = debug().build().double()
    with torch.device("meta"):
        model.head = debug().build().head
    model.requires_grad_(False)
    places = {name: x.data_ptr() for name, x in model.named_parameters() if not x.is_meta}
    assert load(model, tmp_path / "new") is model
    state = model.state_dict()
    due = {k: x.double() if k in places else x for k, x in saved.state_dict().items()}
    assert_same(state, due)
    assert places == {name: state[name].data_ptr() for name in places}
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_gates_of_a_model_with_memory_stay(tmp_path):
    save(awake(debug()), tmp_path / "new")
    model = awake(debug(attention=VSA()))
    gates = {k: x.clone() for k, x in model.state_dict().items() if ".slot." in k}
    load(model, tmp_path / "new", new_gates=True)
    assert_same({k: model.state_dict()[k] for k in gates}, gates)


@pytest.mark.parametrize("format", ["wan", "diffusers"])
@pytest.mark.parametrize("slot", [Dense(), VSA(adapt=True), VSA()], ids=["none", "coarse", "both"])
def test_a_slot_takes_the_gates_that_a_checkpoint_has(tmp_path, format, slot):
    model = awake(debug(attention=slot))
    save(model, tmp_path / "a", format)
    found = with_gates_of(VSA(top_k=3, tile=None), tmp_path / "a")
    assert (found.top_k, found.tile) == (3, None)
    loaded = load(debug(attention=found), tmp_path / "a")
    assert_same(dict(loaded.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("half", ["weight", "bias"])
def test_half_a_gate_is_no_new_one(tmp_path, half):
    fastvideo(tmp_path / "a")
    weights = {k: x for k, x in read(tmp_path / "a").items() if not k.endswith(f"compress.{half}")}
    save_file(weights, tmp_path / "a" / f"{STEM}.safetensors")
    with pytest.raises(ValueError, match=f"keys missing: 2 .*to_gate_compress.{half}"):
        load(debug(attention=VSA(adapt=True)), tmp_path / "a", new_gates=True)


def test_a_sparse_pipeline_finds_the_gates_that_we_save(tmp_path):
    model = awake(debug(attention=VSA(adapt=True))).float()
    save(model, tmp_path / "coarse")
    theirs = WanTransformer3DModel.from_pretrained(tmp_path / "coarse")
    sparsify(theirs, VSA(top_k=3))
    for ours, block in zip(model.layers.values(), theirs.blocks):
        due, found = ours.self_attn.slot.gate_coarse, block.attn1.slot.gate_coarse
        assert_same(dict(found.state_dict()), dict(due.state_dict()))
    save(awake(debug(attention=VSA())), tmp_path / "both")  # the fine ones would be left out
    theirs = WanTransformer3DModel.from_pretrained(tmp_path / "both")
    with pytest.raises(ValueError, match="left over blocks.0.attn1.slot.gate_fine.bias"):
        sparsify(theirs, VSA(top_k=3))
