"""Gates of models whose weights diffusers or accelerate move, from before that and from after."""

import accelerate
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from small_models import KINDS, SMALL, run
from test_gate_files import value_of

from flexsparse.diffusers import BSA, VSA, gates_of, load_gates, restore, save_gates, sparsify

SPARSE = VSA(sparsity=0.5, tile=(2, 2, 2))
CPU = torch.device("cpu")
BATCH = SMALL["wan"].batch((2, 4, 5), 0)


def grouped(model, **options):
    model.enable_group_offload(onload_device=CPU, offload_device=CPU, **options)


WAYS = {
    "leaves": lambda model: grouped(model, offload_type="leaf_level"),
    "blocks": lambda model: grouped(model, offload_type="block_level", num_blocks_per_group=2),
    "model": lambda model: accelerate.cpu_offload_with_hook(model, CPU),
    "sequential": lambda model: accelerate.cpu_offload(model, CPU, offload_buffers=True),
    "casting": lambda model: model.enable_layerwise_casting(torch.bfloat16, torch.float32),
}
ways = pytest.mark.parametrize("way", WAYS)
families = pytest.mark.parametrize("name", KINDS)
# accelerate cannot rebuild the one's output, and the other's first layers take the storage's dtype
DENSE_CANNOT = ("ltx2", "sequential"), ("kandinsky6", "casting")


def skip_what_dense_cannot(name, way, batch):
    if (name, way) in DENSE_CANNOT:
        model = SMALL[name].model(0)
        WAYS[way](model)
        with pytest.raises((TypeError, RuntimeError)):
            run(model, batch)
        pytest.skip("the dense model cannot, either")


def grouped_weights(model):
    """All that group offload moves."""
    groups = [
        hook.group
        for module in model.modules()
        if (hooks := getattr(module, "_diffusers_hook", None))
        and (hook := hooks.get_hook("group_offloading"))
    ]
    return {p for g in groups for m in g.modules for p in m.parameters()} | {
        p for g in groups for p in g.parameters
    }


def opened(name):
    model = SMALL[name].model(0)
    sparsify(model, SPARSE)
    with torch.no_grad():
        for p in gates_of(model).values():
            p.fill_(0.1)
    return model


@families
@ways
def test_a_sparse_model_is_moved_and_changes_its_method(name, way):
    batch = SMALL[name].batch((2, 4, 5), 0)
    skip_what_dense_cannot(name, way, batch)
    model, alone = opened(name), opened(name)
    WAYS[way](model)
    if way == "casting":
        alone.load_state_dict(model.state_dict())
    for method in (SPARSE, VSA(top_k=2), BSA(tile=(2, 2, 2)), VSA(top_k=3), VSA(gates=False)):
        if way == "sequential" and method == VSA(top_k=3):
            with pytest.raises(ValueError, match="are offloaded: sparsify the model before"):
                sparsify(model, method)  # its gates lay aside
            continue
        for one in (model, alone):
            sparsify(one, method)
        assert torch.equal(run(model, batch), run(alone, batch))
        if way in ("leaves", "blocks"):
            assert grouped_weights(model) == set(model.parameters())
    for one in (model, alone):
        restore(one)
    assert torch.equal(run(model, batch), run(alone, batch))
    assert way not in ("leaves", "blocks") or grouped_weights(model) == set(model.parameters())


@families
@ways
def test_a_model_that_is_moved_is_made_sparse_or_refused(name, way):
    batch = SMALL[name].batch((2, 4, 5), 0)
    skip_what_dense_cannot(name, way, batch)
    model, alone = SMALL[name].model(0), SMALL[name].model(0)
    WAYS[way](model)
    if way == "casting":
        alone.load_state_dict(model.state_dict())
    run(model, batch)
    sparsify(model, BSA(tile=(2, 2, 2)))  # which adds nothing that would have to be moved
    sparsify(alone, BSA(tile=(2, 2, 2)))
    assert torch.equal(run(model, batch), run(alone, batch))
    if way == "sequential":
        with pytest.raises(ValueError, match="are offloaded: sparsify the model before"):
            sparsify(model, SPARSE)
        assert torch.equal(run(model, batch), run(alone, batch))
        return
    for one in (model, alone):
        sparsify(one, SPARSE)
        with torch.no_grad():
            for p in gates_of(one).values():
                p.fill_(0.1)
    assert torch.equal(run(model, batch), run(alone, batch))
    assert way not in ("leaves", "blocks") or grouped_weights(model) == set(model.parameters())


def test_gates_that_are_offloaded_are_neither_read_nor_saved_unnoticed(tmp_path):
    save_gates(opened("wan"), tmp_path / "gates")
    for way in WAYS:
        model = opened("wan")
        with torch.no_grad():
            for p in gates_of(model).values():
                p.zero_()
        WAYS[way](model)
        if way == "sequential":
            with pytest.raises(ValueError, match="gate_coarse.weight are offloaded"):
                load_gates(model, tmp_path / "gates")
            with pytest.raises(ValueError, match="gate_coarse.weight are offloaded"):
                save_gates(model, tmp_path / way)
            assert not (tmp_path / way).exists()
            continue
        load_gates(model, tmp_path / "gates")
        save_gates(model, tmp_path / way)
        other = SMALL["wan"].model(0)
        sparsify(other, SPARSE)
        load_gates(other, tmp_path / way)
        assert value_of(model) == value_of(other) == 0.1


def test_gates_that_lie_aside_are_not_moved_and_not_lost():
    model = opened("wan")
    WAYS["leaves"](model)
    gate = model.blocks[0].attn1.slot.gate_coarse
    assert gate._diffusers_hook.get_hook("group_offloading")
    sparsify(model, BSA())
    assert gate._diffusers_hook.get_hook("group_offloading") is None
    model = opened("wan")
    sparsify(model, BSA())
    WAYS["sequential"](model)
    with pytest.raises(ValueError, match="are offloaded"):
        sparsify(model, SPARSE)
    accelerate.hooks.remove_hook_from_submodules(model)
    sparsify(model, SPARSE)
    assert value_of(model) == 0.1


def test_groups_in_files_stay_as_they_were_written(tmp_path):
    """Their weights have numbers there, which gates among them would move."""
    model = opened("wan")
    wanted = run(model, BATCH)
    options = dict(offload_type="block_level", num_blocks_per_group=1)
    grouped(model, **options, offload_to_disk_path=str(tmp_path / "sparse"))
    sparsify(model, SPARSE)
    assert torch.equal(run(model, BATCH), wanted)
    changes = [lambda: sparsify(model, BSA()), lambda: restore(model)]
    changes += [lambda: save_gates(model, tmp_path), lambda: load_gates(model, tmp_path)]
    for change in changes:
        with pytest.raises(ValueError, match="are offloaded to .*/sparse: sparsify the model bef"):
            change()
        assert torch.equal(run(model, BATCH), wanted)

    model = SMALL["wan"].model(0)
    wanted = run(model, BATCH)
    grouped(model, **options, offload_to_disk_path=str(tmp_path / "dense"))
    with pytest.raises(ValueError, match="are offloaded to .*/dense"):
        sparsify(model, SPARSE)
    sparsify(model, VSA(sparsity=0.0, gates=False))
    assert (run(model, BATCH) - wanted).abs().max() <= 1e-5
    restore(model)
    assert torch.equal(run(model, BATCH), wanted)


def test_parts_that_are_grouped_by_themselves_are_refused(tmp_path):
    leaves = dict(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")
    disk = dict(offload_to_disk_path=str(tmp_path / "disk"))
    for given in (
        {"blocks.0": leaves},
        {"blocks.0": leaves, "blocks.1": leaves | disk},
        {"blocks.0": leaves, "proj_out": leaves},
    ):
        model, alone = SMALL["wan"].model(0), SMALL["wan"].model(0)
        for name, options in given.items():
            apply_group_offloading(model.get_submodule(name), **options)
        groups = grouped_weights(model)
        with pytest.raises(ValueError, match="as blocks.0.*, have group offload of their own"):
            sparsify(model, SPARSE)
        assert grouped_weights(model) == groups
        assert torch.equal(run(model, BATCH), run(alone, BATCH))
    model = opened("wan")
    apply_group_offloading(model.blocks[0], **leaves)
    with pytest.raises(ValueError, match="have group offload of their own"):
        restore(model)
    save_gates(model, tmp_path / "gates")
    apply_group_offloading(model.blocks[1], **leaves | disk)
    with pytest.raises(ValueError, match="are offloaded to .*/disk"):
        save_gates(model, tmp_path / "more")
    assert torch.equal(run(model, BATCH), run(opened("wan"), BATCH))


def test_device_maps(tmp_path):
    model = SMALL["wan"].model(0)
    model.save_pretrained(tmp_path / "model")
    sparsify(model, SPARSE)
    wanted = run(model, BATCH)
    load = type(model).from_pretrained
    whole = load(tmp_path / "model", device_map={"": "cpu"})
    sparsify(whole, SPARSE)
    assert torch.equal(run(whole, BATCH), wanted)
    parts = {name: "cpu" for name, _ in model.named_children()}
    parts |= {"blocks.0": "cpu", "blocks.1": "disk", "scale_shift_table": "cpu"}
    del parts["blocks"]
    moved = load(tmp_path / "model", device_map=parts, offload_folder=str(tmp_path / "disk"))
    with pytest.raises(ValueError, match="weights of blocks.1.attn1 are offloaded"):
        sparsify(moved, SPARSE)
    sparsify(moved, VSA(sparsity=0.5, tile=(2, 2, 2), gates=False))
    sparsify(model, VSA(sparsity=0.5, tile=(2, 2, 2), gates=False))
    assert torch.equal(run(moved, BATCH), run(model, BATCH))
