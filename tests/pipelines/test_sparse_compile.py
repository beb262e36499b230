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
# programs of all models count towards one limit: each has the hook that asks for the grid
many_programs = torch._dynamo.config.patch(recompile_limit=64)


@many_programs
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
        *((name, SPARSE, GRIDS[:1]) for name in MORE),
    ],
    ids=["hunyuan-vsa", "cogvideox-bsa", "ltx-vsa", *MORE],
)
@many_programs
def test_so_do_the_others(name, method, grids):
    """One layer of each kind, and one grid for the longest to trace, for time's sake."""
    small = SMALL[name]
    model = small.model(0)
    for blocks in {"transformer_blocks", "blocks", "layers"} & dict(model.named_children()).keys():
        setattr(model, blocks, getattr(model, blocks)[:1])
    dense = run(model, small.batch(GRIDS[0], 0))
    sparsify(model, method)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        found = [run(compiled, small.batch(grid, 0)) for grid in grids]
        wanted = [run(model, small.batch(grid, 0)) for grid in grids]
    assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))
    assert not torch.equal(found[0], dense)
