"""Density by noise level and layer: each call attends as a model of its method alone does."""

import copy
import pickle

import pytest
import torch
from laws import assert_accurate
from small_models import SMALL, run
from torch._dynamo.testing import CompileCounterWithBackend

from flexsparse import Mass, Threshold
from flexsparse.diffusers import BSA, VSA, ByNoise, Dense, restore, sparsify
from flexsparse.diffusers.families import family_of, of_a_thousand

NAMES = [n for n, small in SMALL.items() if family_of(small.model(0)).noise is of_a_thousand]
families = pytest.mark.parametrize("name", NAMES)
HIGH, MIDDLE, LOW = Dense(), VSA(sparsity=0.4, tile=(2, 2, 2)), VSA(sparsity=0.8, tile=(2, 2, 2))
BANDS = {0.3: MIDDLE, 0.6: HIGH, 0.0: LOW}
GRID = 2, 4, 6


def at(small, *timesteps, grid=GRID):
    """A batch at a timestep, or at one for each of two videos."""
    batch, name = small.batch(grid, 0), family_of(small.model(0)).timestep
    if len(set(timesteps)) > 1:
        return batch | {name: torch.tensor(timesteps)}
    return batch | {name: torch.full_like(batch[name], timesteps[0])}


def opened(model):
    """The gates of a sparse model, made to matter."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".slot." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def sparse(small, method, **options):
    model = small.model(0)
    sparsify(model, method, **options)
    return opened(model)


@families
@torch.no_grad()
def test_each_noise_level_has_its_method(name):
    small = SMALL[name]
    model = sparse(small, BANDS)
    alone = {method: sparse(small, method) for method in (MIDDLE, LOW)}
    outs = {}
    for timestep, method in ((599, MIDDLE), (300, MIDDLE), (299, LOW), (0, LOW)):
        batch = at(small, timestep, timestep)
        outs[timestep] = run(model, batch)
        assert torch.equal(outs[timestep], run(alone[method], batch)), timestep
        other = alone[LOW if method is MIDDLE else MIDDLE]
        assert not torch.equal(outs[timestep], run(other, batch))


@families
@pytest.mark.parametrize("method", [LOW, BSA(kv=Mass(0.5), tile=(2, 2, 2))], ids=["vsa", "bsa"])
@torch.no_grad()
def test_dense_above_is_the_dense_model_there(name, method):
    small = SMALL[name]
    model, dense = small.model(0), small.model(0)
    sparsify(model, method, dense_above=0.6)
    for timestep in (1000, 600):
        batch = at(small, timestep, timestep)
        exact = run(copy.deepcopy(dense).double(), batch)
        assert_accurate([run(model, batch)], [[run(dense, batch)]], [exact])
    below = at(small, 599, 599)
    assert not torch.allclose(run(model, below), run(dense, below), atol=1e-4)
    restore(model)
    assert torch.equal(run(model, below), run(dense, below))


@families
@torch.no_grad()
def test_dense_layers_are_dense_at_any_level(name):
    small, batch = SMALL[name], at(SMALL[name], 100)
    model, wanted = sparse(small, LOW, dense_layers=(1,)), sparse(small, LOW)
    attentions = [attention for _, attention in family_of(wanted).layers(wanted)]
    before = run(wanted, batch)
    attentions[1].slot.kv_rule = None
    assert torch.equal(run(model, batch), run(wanted, batch))
    assert not torch.equal(run(model, batch), before)
    with pytest.raises(ValueError, match=rf"layers 0 to {len(attentions) - 1}"):
        sparsify(model, LOW, dense_layers=(len(attentions),))
    assert torch.equal(run(model, batch), run(wanted, batch))


@torch.no_grad()
def test_with_trained_gates_dense_has_the_coarse_stage_too():
    small, batch = SMALL["wan"], at(SMALL["wan"], 900, 900)
    model, dense = (
        sparse(small, LOW, dense_above=0.5),
        sparse(small, VSA(sparsity=0.0, tile=(2, 2, 2))),
    )
    exact = run(copy.deepcopy(dense).double(), batch)
    assert_accurate([run(model, batch)], [[run(dense, batch)]], [exact])
    assert not torch.allclose(run(model, batch), run(small.model(0), batch), atol=1e-3)


@families
@torch.no_grad()
def test_steps_that_share_their_tables_have_each_its_density(name):
    """CogVideoX's and Allegro's pipelines make one rotary table for all of their steps."""
    small = SMALL[name]
    model, batch, timestep = (
        sparse(small, BANDS),
        at(small, 900),
        family_of(small.model(0)).timestep,
    )
    outs = {}
    for level in (900, 400, 100, 400, 900):
        out = run(model, batch | {timestep: torch.full_like(batch[timestep], level)})
        assert torch.equal(outs.setdefault(level, out), out)
    alone = sparse(small, LOW)
    assert torch.equal(
        outs[100], run(alone, batch | {timestep: torch.full_like(batch[timestep], 100)})
    )
    assert len({x.sum().item() for x in outs.values()}) == 3


def gradients_of_two_calls(model, small, shared=False):
    """In one backward, with a rotary table of their own, or one for all."""
    model.zero_grad()
    batches = [at(small, *timesteps) for timesteps in ((800, 800), (400, 400), (100, 100))]
    if shared:
        timestep = family_of(model).timestep
        batches = [batches[0] | {timestep: batch[timestep]} for batch in batches]
    sum(run(model, batch).square().mean() for batch in batches).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("name", "compiled"), [*((name, False) for name in NAMES), ("wan", True)])
def test_a_layer_that_is_run_again_in_the_backward_has_the_density_of_its_call(name, compiled):
    small = SMALL[name]
    model = sparse(small, BANDS)
    wanted = gradients_of_two_calls(model, small)
    model.enable_gradient_checkpointing()
    model.train()
    if compiled:
        model.compile_repeated_blocks(fullgraph=True, backend="eager")
    for shared in (False, True):
        found = gradients_of_two_calls(model, small, shared)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize("whole", [False, True], ids=["blocks", "whole"])
@torch.no_grad()
def test_compiled_each_method_is_a_program_and_none_is_compiled_again(whole):
    torch._dynamo.reset()
    small = SMALL["wan"]
    bands = {0.6: HIGH, 0.3: VSA(top_k=4, tile=(2, 2, 2)), 0.0: VSA(top_k=2, tile=(2, 2, 2))}
    model, eager = sparse(small, bands), sparse(small, bands)
    programs = CompileCounterWithBackend("eager")
    if whole:
        model.compile(backend=programs)
    else:
        model.compile_repeated_blocks(fullgraph=True, backend=programs)
    steps = (950, 700, 590, 400, 200, 50)
    counts = []
    for timesteps in (steps, steps):
        for timestep in timesteps:
            batch = at(small, timestep, timestep)
            assert torch.equal(run(model, batch), run(eager, batch))
            counts.append(programs.frame_count)
    first = counts[0]
    more = 1 if whole else first  # of a whole model there is a piece before the level is read
    assert counts == [first] * 2 + [first + more] * 2 + [first + 2 * more] * 8


@torch.no_grad()
def test_minimax_h3_is_as_dense_as_its_noisiest_rows_want():
    """Its timesteps go from 0, noise, to 1, and there is one for each kind of row."""
    small = SMALL["minimax_h3"]
    model, batch = sparse(small, BANDS), small.batch(GRID, 0)
    low = batch["timestep"].argmin()
    for noise, method in ((0.31, MIDDLE), (0.29, LOW)):
        timestep = batch["timestep"].clamp(min=0.9)
        timestep[low] = 1 - noise
        given = batch | dict(timestep=timestep)
        assert torch.equal(run(model, given), run(sparse(small, method), given))


@torch.no_grad()
def test_cosmos_3_is_as_dense_as_its_noisiest_tokens_want():
    small = SMALL["cosmos3"]
    model, batch = sparse(small, BANDS), small.batch(GRID, 0)
    timesteps = torch.zeros_like(batch["vision_timesteps"])
    for timestep, method in ((310, MIDDLE), (290, LOW)):
        timesteps[-5:] = timestep
        given = batch | dict(vision_timesteps=timesteps)
        assert torch.equal(run(model, given), run(sparse(small, method), given))


@torch.no_grad()
def test_of_timesteps_of_tokens_the_highest_counts():
    """Wan 2.2's TI2V has one for each token, 0 for those of the first picture."""
    small = SMALL["wan"]
    model, batch = sparse(small, BANDS), at(small, 400, 400)
    tokens = 400 * torch.ones(2, 48)
    tokens[:, :24] = 0
    assert torch.equal(
        run(model, batch | dict(timestep=tokens)),
        run(sparse(small, MIDDLE), batch | dict(timestep=tokens)),
    )


def test_what_is_no_density_is_named_and_changes_nothing():
    small, batch = SMALL["wan"], at(SMALL["wan"], 100, 100)
    model = sparse(small, LOW)
    before = run(model, batch)
    for wrong, message in (
        (dict(method=BANDS, dense_above=0.9), "put Dense"),
        (dict(method=LOW, dense_above=850), "dense_above=850 must be a noise level between"),
        (dict(method=LOW, dense_above=0.0), "dense_above=0.0 must be"),
        (dict(method=LOW, dense_layers=0), r"several numbers: \(0,\)"),
        (dict(method={850: Dense(), 0: LOW}), r"noise levels \[850.0, 0.0\] must be in \[0, 1\)"),
        (dict(method=ByNoise([(0, LOW)]).methods * 2), "is no method"),
        (dict(method={0.5: Dense()}), "the least 0"),
        (dict(method={0.0: Dense()}), "no method is sparse"),
        (dict(method={0.5: BSA(), 0.0: VSA()}), "may differ in the tiles"),
        (dict(method={0.5: VSA(tile=(1, 2, 2)), 0.0: LOW}), "may differ in the tiles"),
        (dict(method={0.5: "dense", 0.0: LOW}), "'dense' is no method"),
        (dict(method=Dense()), "is no method"),
        (dict(method=LOW, dense_layers=(-1,)), "numbers of layers"),
    ):
        with pytest.raises(ValueError, match=message):
            sparsify(model, **wrong)
        assert torch.equal(run(model, batch), before)


def test_calls_that_have_no_band_are_named():
    small = SMALL["wan"]
    model = sparse(small, BANDS)
    with pytest.raises(ValueError, match=r"0\.1, 0\.7 want different"):
        run(model, at(small, 100, 700))
    with pytest.raises(ValueError, match="timestep=0.5"):
        run(model, at(small, 100) | dict(timestep=0.5))


@torch.no_grad()
def test_densities_change_and_gates_stay():
    small, batch = SMALL["wan"], at(SMALL["wan"], 100, 100)
    model = sparse(small, LOW)
    gates = [p for n, p in model.named_parameters() if ".slot." in n]
    sparsify(model, BANDS, dense_layers=[0])
    assert all(
        p is q for p, q in zip(gates, (p for n, p in model.named_parameters() if ".slot." in n))
    )
    wanted = run(model, batch)
    sparsify(model, LOW)
    assert not torch.equal(run(model, batch), wanted)
    sparsify(model, ByNoise(BANDS, dense_layers=(0,)))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(twin, batch), wanted)


@torch.no_grad()
def test_rules_of_bsa_differ_by_noise():
    small = SMALL["ltx"]
    model = small.model(0)
    options = dict(tile=(2, 2, 2), window=None)
    methods = {0.5: BSA(kv=Mass(0.9), **options), 0.0: BSA(kv=Threshold(2), **options)}
    sparsify(model, methods)
    for timestep, method in ((700, methods[0.5]), (100, methods[0.0])):
        alone, batch = small.model(0), at(small, timestep, timestep)
        sparsify(alone, method)
        assert torch.equal(run(model, batch), run(alone, batch))
