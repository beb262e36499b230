"""VSA by the kernels that a GPU runs, here in Triton's interpreter, but for FlexAttention's own."""

import itertools
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_accurate, poison, problems, tensors, with_fused
from test_text import check
from test_text import problems as text_problems
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from flexsparse import Mass, Threshold, TopK, VideoTiling, reference, vsa, vsa_attention
from flexsparse.choice import lists
from flexsparse.stages.coarse import coarse_attention
from flexsparse.stages.gates import combine
from flexsparse.vsa import vsa_mask, vsa_tile_map

if sys.platform != "linux":
    pytest.skip("triton is for Linux", allow_module_level=True)
from flexsparse.kernels import coarse_attention as coarse_kernels
from flexsparse.kernels import combine as combine_kernels
from flexsparse.kernels import pool_tiles, select_tiles, tile_lists

without_gpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="tests/gpu has this, with nothing replaced"
)


def shape(tiling):
    return tiling.video, tiling.tile, tiling.rows


def choose(q, k, rule, *, counts, query_tiles):
    how, bounds = rule.fused(k.shape[2]), rule.bounds(k.shape[2])
    return select_tiles.select_tiles(q, k, counts, *how, *bounds, query_tiles)


def with_kernels(patch):
    """Tensors on a CPU go the way of those on a GPU."""
    pool = pool_tiles.pool_tiles
    patch.setattr(vsa, "pool_each", lambda xs, t, kept=3: pool(xs, *shape(t), kept))
    patch.setattr(vsa, "choose_tiles", choose)
    patch.setattr(
        lists,
        "tile_lists_twin",
        lambda bits, t, *a: tile_lists.tile_lists(bits, *shape(t), t.text_tiles, *a),
    )
    attend = coarse_kernels.coarse_attention
    patch.setattr(
        vsa,
        "coarse_attention",
        lambda q, k, v, again: attend(q, k, v, q.shape[-1] ** -0.5, again)[0],
    )
    patch.setattr(vsa, "combine", lambda *a: combine_kernels.combine(*a[:-1], *shape(a[-1])))


@without_gpu
@settings(max_examples=3)
@given(problems(dims=(16, 48), max_rows=256), st.integers(1, 2), st.sampled_from([1.0, 64.0]))
def test_outputs_and_gradients_equal_the_oracle(problem, gates, scale):
    tiling, inputs = problem["tiling"], tensors(3 + gates, problem, scale)
    k = problem["top_k"]
    rule = (TopK(k), Threshold(k), Mass(0.8))[problem["seed"] % 3]
    choice = dict(top_k=rule, query_tiles=problem["query_tiles"])
    generator = torch.Generator().manual_seed(problem["seed"])
    grad = torch.randn(inputs[0].shape, generator=generator)

    def run(compute, dtype):
        xs = [x.detach().to(dtype).requires_grad_() for x in inputs]
        out = compute(*xs)
        return [out.detach(), *torch.autograd.grad(out, xs, grad.to(dtype))]

    def ours(*xs):
        tiled = [poison(tiling.to_tiles(x), tiling) for x in xs]  # NaN in padding
        names = ("gate_coarse", "gate_fine")[:gates]
        return tiling.from_tiles(
            vsa_attention(*tiled[:3], tiling, **choice, **dict(zip(names, tiled[3:])))
        )

    def oracle(q, k, v, coarse, fine=None):
        given = dict(top_k=0, tile_map=chosen, dtype=q.dtype, gate_coarse=coarse, gate_fine=fine)
        return reference.vsa(q, k, v, tiling.video, tiling.tile, **given)

    with pytest.MonkeyPatch.context() as patch:
        with_kernels(patch)
        chosen = vsa_tile_map(*map(tiling.to_tiles, inputs[:2]), tiling, **choice)
        found = run(ours, torch.float32)
        again = run(ours, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, again))
    plain = [run(oracle, torch.float32), with_fused(run, oracle, torch.float32)]
    assert_accurate(found, plain, run(oracle, torch.float64), inputs)


@without_gpu
@settings(max_examples=2)
@given(text_problems(), st.integers(1, 2))
def test_with_text_they_equal_the_oracle(problem, gates):
    tiling, lengths = problem["tiling"], problem["text_lengths"]
    choice = dict(top_k=problem["rule"], query_tiles=problem["query_tiles"])
    names = ("gate_coarse", "gate_fine")[:gates]

    def ours(q, k, v, *given):
        given = dict(zip(names, given))
        return vsa_attention(q, k, v, tiling, text_lengths=lengths, **choice, **given)

    def oracle(dtype, q, k, v, *given):
        options = dict(zip(names, given)) | dict(dtype=dtype, tile_map=chosen, text_lengths=lengths)
        return reference.vsa(q, k, v, tiling.video, tiling.tile, top_k=0, **options)

    inputs = tensors(3 + gates, problem)
    with pytest.MonkeyPatch.context() as patch:
        with_kernels(patch)
        chosen = vsa_tile_map(*map(tiling.to_tiles, inputs[:2]), tiling, **choice)
        check(problem, ours, oracle, inputs)


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels that are launched; they do not run."""
    names = []

    class Recorded:
        def __init__(self, kernel):
            self.name = getattr(kernel, "fn", kernel).__name__

        def __getitem__(self, grid):
            def launch(*arguments, **options):
                names.append(self.name)
                given = [id(x) for x in arguments if isinstance(x, torch.Tensor)]
                # Inductor clones what a kernel may write and is given twice, and returns the clone.
                assert self.name != "_lists" or len(set(given)) == len(given)

            return launch

    for module in (pool_tiles, select_tiles, tile_lists, coarse_kernels, combine_kernels):
        monkeypatch.setattr(module, "wrap_triton", Recorded)
    sizes = dict(multi_processor_count=132, shared_memory_per_block_optin=232448)
    h200 = SimpleNamespace(major=9, **sizes)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: h200)
    return names


def test_a_rule_that_holds_a_tensor_wants_it_on_the_device(launches):
    tiling = VideoTiling((7, 9, 10), (4, 4, 4))
    with FakeTensorMode():
        q = torch.empty(1, 2, tiling.padded_tokens, 64, device="cuda")
        with pytest.raises(ValueError, match="holds a tensor on a CPU, q is on cuda:0: move it"):
            vsa_mask(q, q, tiling, top_k=TopK(torch.tensor(3)))
        vsa_mask(q, q, tiling, top_k=TopK(torch.tensor(3, device="cuda")))


def test_fake_tensors_on_a_cpu_have_no_values_to_check():
    tiling = VideoTiling((7, 9, 10), (4, 4, 4))
    with FakeTensorMode():
        q = torch.empty(1, 2, tiling.padded_tokens, 64)
        assert vsa_mask(q, q, tiling, top_k=3).kv_num_blocks.shape == (1, 2, tiling.num_tiles)


@pytest.mark.parametrize("rule", [TopK(3), Threshold(3), Mass(0.8)], ids=["top", "thr", "mass"])
def test_a_mask_takes_three_launches_and_never_waits_for_the_device(rule, launches):
    """Fake CUDA tensors hold no values: whatever asks for one (and so would wait) raises."""
    tiling = VideoTiling((7, 9, 10), (4, 4, 4))
    with FakeTensorMode():
        size = 1, 2, tiling.padded_tokens, 64
        q = torch.empty(size, device="cuda", dtype=torch.bfloat16)
        for pairs, trains in itertools.product((1, 2), (True, False)):
            with torch.set_grad_enabled(trains):
                mask = vsa_mask(q, q, tiling, top_k=rule, query_tiles=pairs)
            assert launches == ["_pool", "_select", "_lists"]
            launches.clear()
            blocks, most = -(-tiling.num_tiles // pairs), rule.bounds(tiling.num_tiles)[1]
            assert mask.kv_indices.shape == (1, 2, blocks, most) and mask.kv_indices.is_cuda
            assert (mask.q_indices is not None) == trains
            assert not trains or mask.q_indices.shape == (1, 2, tiling.num_tiles, blocks)
        means = torch.empty(1, 2, tiling.num_tiles, 64, device="cuda")
        out = combine(q, coarse_attention(means, means, means), q, q, tiling)
        assert launches == ["_coarse_forward", "_combine_forward"]
        assert out.shape == size
        with pytest.raises(DataDependentOutputException):
            mask.kv_num_blocks.max().item()
