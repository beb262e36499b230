"""torch.compile takes the whole model in one graph, forward and backward, once for all steps."""

import pytest
import torch
from laws import assert_accurate
from small_dit import draw_batch, gradients, small_model
from torch._dynamo.testing import CompileCounterWithBackend

from models.attention import BSA, VSA, Dense

SMALL_BSA = BSA(sparsity=0.5, tile=(2, 2, 2), window=(1, 2, 2))
SMALL_VSA = VSA(top_k=2, tile=(2, 2, 2))
SLOTS, IDS = [Dense(), SMALL_VSA, SMALL_BSA], ["dense", "vsa", "bsa"]
slots = pytest.mark.parametrize("attention", SLOTS, ids=IDS)


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@slots
def test_ten_steps_of_changing_data_compile_once(attention):
    counter = CompileCounterWithBackend("eager")
    model = small_model(attention=attention, layers=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = torch.compile(model, fullgraph=True, backend=counter)
    for seed in range(10):
        x, t, context = draw_batch(model.config, seed=seed)
        step(x, t, context).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert counter.frame_count == 1


@slots
def test_blocks_compiled_one_by_one_share_a_graph(attention):
    counter = CompileCounterWithBackend("eager")
    model = small_model(attention=attention, layers=4)
    for block in model.layers.values():
        block.compile(fullgraph=True, backend=counter)
    model(*draw_batch(model.config)).square().mean().backward()
    assert counter.frame_count == 1


# A C++ compiler takes a minute for a model: for one that has all that the others have but BSA,
# which tests/test_bsa.py compiles alone.
@pytest.mark.parametrize(
    "attention, backend",
    [(slot, "inductor" if slot is SMALL_VSA else "aot_eager_decomp_partition") for slot in SLOTS],
    ids=IDS,
)
def test_compiled_is_as_exact_as_eager(attention, backend):
    model = small_model(attention=attention, layers=1)
    exact = small_model(attention=attention, layers=1).double()
    x, t, context = draw_batch(model.config)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    outputs = [compiled(x, t, context), model(x, t, context), exact(x.double(), t, context)]
    ours, eager, truth = (
        [output, *gradients(of, output).values()]
        for of, output in zip((model, model, exact), outputs)
    )
    assert_accurate(ours, [eager], truth)
