"""torch.compile takes the whole Wan model in one graph, once for every size of the latent."""

from dataclasses import replace

import pytest
import torch
from laws import assert_accurate
from small_wan import draw_batch, gradients, small_wan
from torch._dynamo.testing import CompileCounterWithBackend

from models.attention import VSA, Dense

FIT = VSA(sparsity=0.5, tile=None)
SIZES = [(3, 8, 12), (2, 10, 14), (5, 6, 10)]


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "attention, sizes, options",
    [(Dense(), SIZES[:2], dict(dynamic=False)), (FIT, SIZES, {})],
    ids=["static", "default"],
)
def test_every_size_is_compiled_once_and_gives_what_eager_gives(attention, sizes, options):
    counter = CompileCounterWithBackend("eager")
    model = small_wan(attention=attention, layers=1)
    compiled = torch.compile(model, fullgraph=True, backend=counter, **options)
    for size in sizes + sizes:
        batch = draw_batch(replace(model.config, video=size), seed=size[0])
        assert torch.equal(compiled(*batch), model(*batch))
    assert counter.frame_count == len(sizes)


def test_blocks_compiled_one_by_one_share_a_graph():
    counter = CompileCounterWithBackend("eager")
    model = small_wan(attention=FIT)
    for block in model.layers.values():
        block.compile(fullgraph=True, backend=counter)
    model(*draw_batch(model.config))
    assert counter.frame_count == 1


def test_compiled_is_as_exact_as_eager():
    """All of compilation but Inductor's code: a sparse block's is in test_sparse_compile.py, and
    that of a model's gradients in test_video_dit_compile.py."""
    model = small_wan(layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager_decomp_partition")
    x, t, context = draw_batch(model.config)
    results = []
    for call, of in ((compiled, model), (model, model)):
        velocity = call(x, t, context)
        results.append([velocity, *gradients(of, velocity).values()])
    exact = small_wan(layers=1).double()
    velocity = exact(x.double(), t, context.double())
    ours, eager = results
    assert_accurate(ours, [eager], [velocity, *gradients(exact, velocity).values()])
