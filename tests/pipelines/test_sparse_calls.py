"""A sparse model among what else is done to models: checkpointing, autocast, fusing, subclasses."""

import gc
import io
import weakref
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from laws import assert_accurate
from small_models import SMALL, run
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from flexsparse import TopK
from flexsparse.diffusers import BSA, VSA, restore, save_gates, sparsify
from flexsparse.diffusers.call import tile_rotary

families = pytest.mark.parametrize("name", SMALL)
SPARSE = VSA(sparsity=0.5, tile=(2, 2, 2))


def gradients_of_two_calls(model, small):
    """One backward of two calls, whose grids have as many tokens."""
    model.zero_grad()
    batches = [small.batch(grid, 0) for grid in ((2, 4, 6), (2, 6, 4))]
    sum(run(model, batch).square().mean() for batch in batches).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@families
def test_a_layer_that_is_run_again_in_the_backward_has_the_grid_of_its_call(name):
    small = SMALL[name]
    model = small.model(0)
    sparsify(model, SPARSE)
    wanted = gradients_of_two_calls(model, small)
    model.enable_gradient_checkpointing()
    model.train()
    found = gradients_of_two_calls(model, small)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)


def call_of(model):
    return next(m.processor.call for m in model.modules() if hasattr(m, "slot"))


@pytest.mark.parametrize("name", ["wan", "cogvideox", "minimax_h3"])
def test_so_it_has_where_no_rotary_table_tells_of_the_call(name):
    """Compiled blocks cannot ask which call a table is of, and CogVideoX-2B has none."""
    small = SMALL[name]
    if name == "cogvideox":
        none = dict(image_rotary_emb=None)
        small = replace(small, batch=lambda *given: SMALL[name].batch(*given) | none)
    model = small.model(0)
    sparsify(model, SPARSE)
    wanted = gradients_of_two_calls(model, small)
    model.enable_gradient_checkpointing()
    model.train()
    if name != "cogvideox":
        model.compile_repeated_blocks(fullgraph=True, backend="eager")
    found = gradients_of_two_calls(model, small)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    with pytest.raises(ValueError, match="ran by itself"):
        call_of(model).tiling(48)


def test_a_call_that_raises_leaves_no_grid_behind():
    small = SMALL["wan"]
    model, batch = small.model(0), small.batch((2, 4, 5), 0)
    sparsify(model, SPARSE)
    with pytest.raises(RuntimeError):
        run(model, batch | dict(encoder_hidden_states=torch.randn(2, 6, 9)))
    with pytest.raises(ValueError, match="ran by itself"):
        model.blocks[0].attn1(torch.randn(1, 40, 32))


@families
def test_layers_share_a_rotary_table_that_lives_as_long_as_the_call(name):
    small, made = SMALL[name], []
    model = small.model(0)
    if name == "mochi":
        model.pos_frequencies.requires_grad_(False)
    sparsify(model, SPARSE)

    def tiled(*given):
        out = tile_rotary(*given)
        made.append([weakref.ref(x) for x in out])
        return out

    with mock.patch("flexsparse.diffusers.call.tile_rotary", tiled):
        for count, grid in enumerate(((2, 4, 5), (2, 2, 2)), 1):
            run(model, small.batch(grid, 0)).sum().backward()
            assert len(made) == count
    gc.collect()
    assert not any(table() is not None for tables in made for table in tables)


def test_a_rotary_table_of_many_calls_is_tiled_for_each_kind():
    """With other text beside it, and for a backward after inference."""
    small = SMALL["cogvideox"]
    model, batch = small.model(0), small.batch((2, 4, 5), 0)
    sparsify(model, SPARSE)
    short = batch | dict(encoder_hidden_states=batch["encoder_hidden_states"][:, :5])

    def fresh(batch):
        other = small.model(0)
        sparsify(other, SPARSE)
        cos, sin = batch["image_rotary_emb"]
        return run(other, batch | dict(image_rotary_emb=(cos.clone(), sin.clone())))

    with torch.inference_mode():
        for given in (batch, short, batch):
            assert torch.equal(run(model, given), fresh(given))
    out = run(model, batch)
    out.sum().backward()
    assert torch.equal(out, fresh(batch))


@pytest.mark.parametrize("name", [n for n in SMALL if n != "cosmos3"])  # which is not for it
def test_autocast_computes_in_its_dtype(name):
    small, batch = SMALL[name], SMALL[name].batch((2, 4, 5), 0)
    model = small.model(0)
    exact = run(small.model(0).double(), batch).detach()
    with torch.autocast("cpu", torch.bfloat16):
        dense = run(model, batch).detach()
        sparsify(model, VSA(sparsity=0.0))
        assert_accurate([run(model, batch).detach().to(dense.dtype)], [[dense]], [exact])
        sparsify(model, BSA(keep=0.5))
        assert run(model, batch).isfinite().all()


@pytest.mark.parametrize("method", ["vsa", BSA(window=(3, 3, 3)), VSA], ids=str)
def test_what_cannot_be_done_changes_nothing(method):
    small, batch = SMALL["wan"], SMALL["wan"].batch((2, 4, 5), 0)
    model = small.model(0)
    sparsify(model, SPARSE)
    with torch.no_grad():
        model.blocks[0].attn1.slot.gate_coarse.bias.fill_(0.3)
    before = run(model, batch)
    with pytest.raises(ValueError):
        sparsify(model, method)
    assert torch.equal(run(model, batch), before)
    restore(model)


def test_processors_that_others_set_are_named():
    small, batch = SMALL["cogvideox"], SMALL["cogvideox"].batch((2, 4, 5), 0)
    model = small.model(0)
    model.transformer_blocks = model.transformer_blocks[:1]
    sparsify(model, SPARSE)
    compiled = torch.compile(model, backend="eager")
    run(compiled, batch)
    model.fuse_qkv_projections()
    for called in (model, compiled):
        with pytest.raises(
            ValueError, match="transformer_blocks.0.attn1 has lost its sparse attention"
        ):
            run(called, batch)


def test_a_grid_of_fewer_tiles_than_choose_together():
    small = SMALL["wan"]
    model, alone = small.model(0), small.model(0)
    sparsify(model, VSA(top_k=2, tile=(2, 2, 2), query_tiles=2))
    sparsify(alone, VSA(top_k=2, tile=(2, 2, 2)))
    batch = small.batch((1, 2, 2), 0)
    assert torch.equal(run(model, batch), run(alone, batch))


def test_a_rule_of_more_tiles_than_there_are_takes_all():
    small, batch = SMALL["wan"], SMALL["wan"].batch((2, 4, 5), 0)
    model = small.model(0)
    outs = []
    for kv in (64, TopK(64), TopK(12), TopK(3)):  # of 12
        sparsify(model, BSA(kv=kv, tile=(2, 2, 2)))
        outs.append(run(model, batch))
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])
    assert not torch.equal(outs[0], outs[3])


def test_offloaded_weights_are_refused():
    model = SMALL["wan"].model(0).to("meta")
    with pytest.raises(ValueError, match="are offloaded: sparsify the model before"):
        sparsify(model, SPARSE)


def test_gates_are_sharded_with_the_model_or_refused(tmp_path):
    small, batch = SMALL["wan"], SMALL["wan"].batch((2, 4, 5), 0)
    alone = not dist.is_initialized()  # other tests' trainers leave a world of one
    if alone:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = fully_shard(small.model(0))
        for method in (BSA(), VSA(gates=False)):
            with pytest.raises(ValueError, match=r"blocks.0.attn1 are sharded.* fully_shard"):
                sparsify(model, SPARSE)  # before and after a first call
            sparsify(model, method)  # has nothing to shard
            assert run(model, batch).isfinite().all()
        model = small.model(0)
        sparsify(model, SPARSE)
        fully_shard(model)
        for method in (VSA(top_k=2), BSA(), SPARSE):
            sparsify(model, method)
        gates = [p for n, p in model.named_parameters() if ".slot." in n]
        assert len(gates) == 4 and all(isinstance(p, DTensor) for p in gates)
        with pytest.raises(ValueError, match="the gates are sharded"):
            save_gates(model, tmp_path)
        model = small.model(0)
        sparsify(model, SPARSE)
        sparsify(model, BSA())
        fully_shard(model)  # but not the gates that lie aside
        with pytest.raises(ValueError, match="before fully_shard"):
            sparsify(model, SPARSE)
    finally:
        if alone:
            dist.destroy_process_group()


@families
def test_a_sparse_model_is_pickled_as_a_dense_one_is(name):
    small, batch = SMALL[name], SMALL[name].batch((2, 4, 5), 0)
    model, file = small.model(0), io.BytesIO()
    dense = run(model, batch)
    sparsify(model, SPARSE)
    wanted = run(model, batch)
    torch.save(model, file)
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert torch.equal(run(loaded, batch), wanted)
    restore(loaded)
    assert torch.equal(run(loaded, batch), dense)
    assert torch.equal(run(model, batch), wanted)


def test_a_subclass_and_a_compiled_model_are_known():
    small, batch = SMALL["wan"], SMALL["wan"].batch((2, 4, 5), 0)
    model, wanted = small.model(0), small.model(0)
    model.__class__ = type("Mine", (type(model),), {})
    sparsify(torch.compile(model, backend="eager"), SPARSE)
    sparsify(wanted, VSA(sparsity=np.float64(0.5), tile=(2, 2, 2)))
    assert torch.equal(run(model, batch), run(wanted, batch))


def test_ltx_takes_its_grid_by_place_as_well():
    small, batch = SMALL["ltx"], SMALL["ltx"].batch((2, 4, 5), 0)
    model = small.model(0)
    sparsify(model, SPARSE)
    assert torch.equal(model(*batch.values()).sample, run(model, batch))


def test_a_layer_by_itself_after_a_call_is_refused():
    small = SMALL["wan"]
    model = small.model(0)
    sparsify(model, SPARSE)
    run(model, small.batch((2, 4, 5), 0))
    with pytest.raises(ValueError, match="ran by itself"):
        model.blocks[0].attn1(torch.randn(1, 40, 32))
