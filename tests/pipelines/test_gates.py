"""VSA's gates on a diffusers model: they train, are saved and found again, and never replaced."""

import warnings

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from small_models import SMALL, run

from flexsparse.diffusers import BSA, VSA, gates_of, load_gates, restore, save_gates, sparsify

families = pytest.mark.parametrize("name", SMALL)
SPARSE = VSA(sparsity=0.5, tile=(2, 2, 2))
FILE = "diffusion_pytorch_model.safetensors"


def opened(name, value=0.1):
    """A sparse model whose gates are all of this value."""
    model = SMALL[name].model(0)
    sparsify(model, SPARSE)
    with torch.no_grad():
        for p in gates_of(model).values():
            p.fill_(value)
    return model


@families
def test_gates_train_and_come_back_with_the_model(name, tmp_path):
    small, batch = SMALL[name], SMALL[name].batch((2, 4, 5), 0)
    model = small.model(0)
    sparsify(model, SPARSE)
    gates = gates_of(model)
    assert len(gates) == 4 and not any(p.any() for p in gates.values())
    run(model, batch).square().mean().backward()
    assert all(p.grad.any() for p in gates.values())

    model = opened(name)
    model.save_pretrained(tmp_path / "sparse")
    loaded = type(model).from_pretrained(tmp_path / "sparse").eval()
    sparsify(loaded, SPARSE)
    assert torch.equal(run(loaded, batch), run(model, batch))


def test_a_saved_dense_model_knows_of_no_gates(tmp_path):
    model = SMALL["wan"].model(0)
    before = dict(model.config)
    sparsify(model, SPARSE)
    for change in (restore, lambda model: sparsify(model, BSA())):
        sparsify(model, SPARSE)
        assert dict(model.config) != before
        change(model)
        assert dict(model.config) == before
    restore(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    with warnings.catch_warnings(action="error"):
        sparsify(loaded, SPARSE)
    assert not any(p.any() for p in gates_of(loaded).values())


def test_gates_that_are_not_found_are_missed_in_a_line(tmp_path):
    model = opened("wan")
    model.save_pretrained(tmp_path / "transformer")
    loaded = type(model).from_pretrained(tmp_path, subfolder="transformer")
    folder = tmp_path.with_name("moved")
    (tmp_path / "transformer").rename(folder)
    with pytest.warns(UserWarning, match=r"saved with trained gates.* until load_gates") as told:
        sparsify(loaded, SPARSE)
    assert len(told) == 1 and str(tmp_path) in str(told[0].message)
    assert told[0].filename == __file__
    assert not any(p.any() for p in gates_of(loaded).values())
    load_gates(torch.compile(loaded, backend="eager"), folder)
    assert all(p.eq(0.1).all() for p in gates_of(loaded).values())
    with warnings.catch_warnings(action="error"):
        sparsify(loaded, VSA(top_k=3))
        sparsify(loaded, VSA(gates=False))
        sparsify(loaded, BSA())


def test_gates_of_a_pipelines_transformer_are_found_by_its_folder(tmp_path):
    opened("wan").save_pretrained(tmp_path / "transformer")
    cls = type(SMALL["wan"].model(0))
    loaded = cls.from_pretrained(tmp_path, subfolder="transformer")
    sparsify(loaded, SPARSE)
    assert all(torch.equal(p, torch.full_like(p, 0.1)) for p in gates_of(loaded).values())
    opened("wan", 0.2).save_pretrained(tmp_path / "transformer_2")  # trained in its gates alone
    for part in ("transformer", "transformer_2"):
        loaded = cls.from_pretrained(tmp_path, subfolder=part)
        with pytest.raises(ValueError, match="different gates.* from its own folder"):
            sparsify(loaded, SPARSE)
    loaded = cls.from_pretrained(tmp_path / "transformer")  # as the error says
    sparsify(loaded, SPARSE)
    assert all(torch.equal(p, torch.full_like(p, 0.1)) for p in gates_of(loaded).values())


def test_gates_of_a_wan_checkpoint_by_fastvideos_name_are_found(tmp_path):
    model = SMALL["wan"].model(0)
    model.save_pretrained(tmp_path)
    shapes = dict(weight=(32, 32), bias=(32,))
    theirs = {
        f"blocks.{n}.to_gate_compress.{kind}": torch.randn(shape)
        for n in range(2)
        for kind, shape in shapes.items()
    }
    save_file(load_file(tmp_path / FILE) | theirs, tmp_path / FILE, {"format": "pt"})
    loaded = type(model).from_pretrained(tmp_path)
    sparsify(loaded, SPARSE)
    for n, block in enumerate(loaded.blocks):
        gate = block.attn1.slot.gate_coarse
        assert torch.equal(gate.weight, theirs[f"blocks.{n}.to_gate_compress.weight"])
        assert torch.equal(gate.bias, theirs[f"blocks.{n}.to_gate_compress.bias"])


def test_gates_that_do_not_fit_are_refused_and_change_nothing(tmp_path):
    model = opened("wan")
    model.save_pretrained(tmp_path)
    saved, gate = load_file(tmp_path / FILE), "blocks.1.attn1.slot.gate_coarse.bias"
    loaded = type(model).from_pretrained(tmp_path).eval()
    batch = SMALL["wan"].batch((2, 4, 5), 0)
    dense = run(loaded, batch)
    for change, words in [
        ({gate: None}, f"has 3 gates, the model 4: missing {gate}; left over none"),
        ({gate.replace("coarse", "fine"): torch.ones(32)}, "missing none; left over .*gate_fine"),
        ({gate: torch.ones(31)}, rf"{gate} is \[31\] in .*, \[32\] in the model"),
    ]:
        weights = {n: x for n, x in (saved | change).items() if x is not None}
        save_file(weights, tmp_path / FILE, {"format": "pt"})
        with pytest.raises(ValueError, match=words):
            sparsify(loaded, SPARSE)
        assert torch.equal(run(loaded, batch), dense)


def test_what_load_gates_cannot_do_is_named(tmp_path):
    model = opened("wan")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no"):
        load_gates(model, tmp_path / "empty")
    dense = SMALL["wan"].model(0)
    with pytest.raises(ValueError, match="has no gates: sparsify"):
        load_gates(dense, tmp_path / "empty")
    dense.save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match="has 0 gates, the model 4: missing .*gate_coarse"):
        load_gates(model, tmp_path / "dense")


@families
def test_another_method_keeps_the_gates_themselves(name):
    model = opened(name)
    before = gates_of(model)
    for method in (VSA(sparsity=0.75), VSA(top_k=3, tile=None), VSA()):
        sparsify(model, method)
        after = gates_of(model)
        assert after.keys() == before.keys()
        assert all(after[n] is p for n, p in before.items())
        assert all(p.eq(0.1).all() for p in before.values())
    sparsify(model, VSA(gates=False))
    assert not gates_of(model)


def test_gates_that_a_method_has_no_use_for_come_back_with_one_that_has(tmp_path):
    """Themselves, even where the model's folder has others, in the dtype of the model by then."""
    opened("wan").save_pretrained(tmp_path)
    model = type(SMALL["wan"].model(0)).from_pretrained(tmp_path)
    sparsify(model, SPARSE)
    gates = gates_of(model)
    with torch.no_grad():
        for p in gates.values():
            p.fill_(0.75)
    for between in ([BSA()], [VSA(gates=False)], [BSA(), VSA(gates=False), BSA(keep=0.25)]):
        for method in between:
            sparsify(model, method)
            assert not gates_of(model)
        sparsify(model, SPARSE)
        assert all(p is gates[n] and p.eq(0.75).all() for n, p in gates_of(model).items())
        assert gates_of(model).keys() == gates.keys()
    sparsify(model, BSA())
    model.to(torch.bfloat16)
    sparsify(model, BSA(keep=0.25))
    sparsify(model, SPARSE)
    assert {p.dtype for p in gates_of(model).values()} == {torch.bfloat16}
    assert all(p.eq(0.75).all() for p in gates_of(model).values())
    restore(model)
    sparsify(model, SPARSE)  # anew, from the folder
    assert all(torch.equal(p, torch.full_like(p, 0.1)) for p in gates_of(model).values())


def test_another_method_keeps_the_lora_of_a_gate(tmp_path):
    model, batch = opened("wan"), SMALL["wan"].batch((2, 4, 5), 0)
    model.save_pretrained(tmp_path)
    lora = dict(r=2, target_modules=["to_q", "gate_coarse"], init_lora_weights=False)
    model.add_adapter(LoraConfig(**lora))
    wanted, before = run(model, batch), dict(model.named_parameters())
    assert sum("gate_coarse.lora_" in n for n in before) == 4
    sparsify(model, VSA(sparsity=0.0, tile=(2, 2, 2)))
    assert not torch.equal(run(model, batch), wanted)
    sparsify(model, SPARSE)
    assert torch.equal(run(model, batch), wanted)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys() and all(after[n] is p for n, p in before.items())

    base = {n: p for n, p in before.items() if "gate_coarse.base_layer" in n}
    assert len(base) == 4
    save_gates(model, tmp_path / "gates")
    for folder in (tmp_path, tmp_path / "gates"):
        with torch.no_grad():
            for p in base.values():
                p.zero_()
        load_gates(model, folder)
        assert all(p.eq(0.1).all() for p in base.values())
        assert torch.equal(run(model, batch), wanted)


@pytest.mark.parametrize("first", ["lora", "sparsify"])
def test_gates_train_whole_beside_lora_and_are_saved_beside_it(first, tmp_path):
    small, batch = SMALL["wan"], SMALL["wan"].batch((2, 4, 5), 0)
    model = small.model(0)
    steps = [lambda: model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))]
    steps.insert(first == "lora", lambda: sparsify(model, SPARSE))
    for step in steps:
        step()
    assert not any(p.requires_grad for p in gates_of(model).values())
    for p in gates_of(model).values():
        p.requires_grad_()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        run(model, batch).square().mean().backward()
        optimizer.step()
    assert len(gates_of(model)) == 4 and all(p.any() for p in gates_of(model).values())
    model.save_lora_adapter(tmp_path)
    save_gates(torch.compile(model, backend="eager"), tmp_path)

    other = small.model(0)
    sparsify(other, SPARSE)
    file = dict(weight_name="pytorch_lora_weights.safetensors", use_safetensors=True)
    other.load_lora_adapter(tmp_path, prefix=None, **file)
    without = run(other, batch)
    load_gates(other, tmp_path)
    assert torch.equal(run(other, batch), run(model, batch))
    assert not torch.equal(run(other, batch), without)


def test_save_gates_replaces_none(tmp_path):
    model = opened("wan")
    save_gates(model, tmp_path / "new" / "folder")
    before = (tmp_path / "new/folder/gates.safetensors").read_bytes()
    model.save_pretrained(tmp_path / "whole")
    for folder in ("new/folder", "whole"):
        with pytest.raises(FileExistsError, match="has gates already: give another folder"):
            save_gates(opened("wan", 0.2), tmp_path / folder)
    assert (tmp_path / "new/folder/gates.safetensors").read_bytes() == before
    assert not (tmp_path / "whole/gates.safetensors").exists()
    with pytest.raises(ValueError, match="has no gates: sparsify"):
        save_gates(SMALL["wan"].model(0), tmp_path)


def test_gates_in_a_pickle_are_found(tmp_path):
    model = opened("wan")
    model.save_pretrained(tmp_path, safe_serialization=False)
    (tmp_path / "optimizer.bin").write_bytes(b"somebody's")
    assert not [*tmp_path.glob("*.safetensors")]
    loaded = type(model).from_pretrained(tmp_path, use_safetensors=False)
    with warnings.catch_warnings(action="error"):
        sparsify(loaded, SPARSE)
    other = SMALL["wan"].model(0)
    sparsify(other, SPARSE)
    load_gates(other, tmp_path)
    for found in (gates_of(loaded), gates_of(other)):
        assert len(found) == 4
        assert all(torch.equal(p, torch.full_like(p, 0.1)) for p in found.values())
