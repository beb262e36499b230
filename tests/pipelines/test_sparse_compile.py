"""A sparse model under torch.compile: a graph without a break for each grid, as eager computes."""

import copy

import diffusers
import pytest
import torch
from laws import assert_accurate
from small_models import SMALL, run

from flexsparse import Mass
from flexsparse.diffusers import BSA, VSA, sparsify

diffusers.utils.logging.set_verbosity_error()  # it says of every cast which modules it keeps
GRIDS = (2, 4, 5), (2, 6, 7)
SPARSE = VSA(sparsity=0.5, tile=None)
MORE = "mochi", "cosmos3", "anyflow", "helios"  # each in ways of its own


def test_wan_compiles_as_a_whole_and_for_the_next_grid():
    small = SMALL["wan"]
    model = small.model(0)
    model.blocks = model.blocks[:1]
    sparsify(model, SPARSE)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for grid in GRIDS:
            batch = small.batch(grid, 0)
            exact = run(copy.deepcopy(model).double(), batch)
            assert_accurate([run(compiled, batch)], [[run(model, batch)]], [exact])


@pytest.mark.parametrize(
    ("name", "method", "grids"),
    [
        ("hunyuan", SPARSE, GRIDS[:1]),
        ("cogvideox", BSA(keep=0.5, kv=Mass(0.9)), GRIDS),
        ("ltx", SPARSE, GRIDS),
        ("minimax_h3", SPARSE, GRIDS),
        ("kandinsky5", SPARSE, GRIDS[:1]),
        ("kandinsky6", BSA(keep=0.5, kv=Mass(0.9)), GRIDS),
        ("ltx2", SPARSE, GRIDS[:1]),
        *((name, SPARSE, GRIDS[:1]) for name in MORE),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_so_do_the_others(name, method, grids):
    """One layer of each kind, and one grid for the longest to trace, for time's sake."""
    small = SMALL[name]
    model = small.model(0)
    lists = {"transformer_blocks", "visual_transformer_blocks", "blocks", "layers"}
    for blocks in lists & dict(model.named_children()).keys():
        setattr(model, blocks, getattr(model, blocks)[:1])
    dense = run(model, small.batch(GRIDS[0], 0))
    sparsify(model, method)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    batches = [small.batch(grid, 0) for grid in grids]
    if name == "minimax_h3":  # whose grid is else a matter of tensors
        batches = [
            batch | dict(attention_kwargs=dict(grid=grid)) for batch, grid in zip(batches, grids)
        ]
    with torch.no_grad():
        found = [run(compiled, batch) for batch in batches]
        wanted = [run(model, batch) for batch in batches]
    assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))
    assert not torch.equal(found[0], dense)


def test_a_packed_sequence_compiles_for_grids_of_as_many_tokens():
    """In two programs, since between them its position ids are read."""
    small = SMALL["minimax_h3"]
    model = small.model(0)
    model.transformer_blocks = model.transformer_blocks[:1]
    sparsify(model, VSA(sparsity=0.5, tile=(2, 2, 2)))
    compiled = torch.compile(model, backend="eager")
    batches = [small.batch(grid, 0) for grid in ((2, 4, 6), (2, 6, 4))]
    with torch.no_grad():
        found, wanted = ([run(m, batch) for batch in batches] for m in (compiled, model))
    assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))
