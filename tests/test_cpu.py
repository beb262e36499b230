"""The CPU operator, against a masked softmax that knows lists only as a mask."""

from dataclasses import replace

import pytest
import torch
from block_problems import Problem, differentiate, gradients_like, problems
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_accurate, seeds
from torch import Tensor

from flexsparse.engines import cpu
from flexsparse.engines.cpu import block_sparse_attention

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@given(problems(8), seeds, st.sampled_from(DTYPES), st.sampled_from([1, 8, 64]), st.integers(1, 9))
def test_matches_masked_softmax(problem, seed, dtype, logits, chunk):
    q, k, v = problem.to(dtype).tensors
    problem = replace(problem, tensors=(q * logits, k, v))
    given_ = gradients_like(problem, seed)
    given_ = [g.to(dtype).double() for g in given_]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "FORWARD_CHUNK", 4**chunk)
        patch.setattr(cpu, "BACKWARD_CHUNK", 4**chunk)
        ours = differentiate(problem, Problem.attend, *given_)
    plain, flash = (
        differentiate(problem, attend, *given_) for attend in (Problem.dense, Problem.dense_flash)
    )
    exact = differentiate(problem.to(torch.float64), Problem.dense, *given_)
    blind = exact[1] == -torch.inf
    assert torch.equal(ours[1] == -torch.inf, blind)
    for results in (ours, plain, flash, exact):
        results[1] = results[1].masked_fill(blind, 0)
    assert_accurate(ours, [plain, flash], exact, [*problem.tensors, *given_])

    mask = problem.mask().unflatten(1, (k.shape[1], -1))
    unseen = ~mask.any(2).any(-2)
    assert not ours[0][blind].any() and not ours[2][blind].any()
    assert not ours[3][unseen].any() and not ours[4][unseen].any()


@settings(max_examples=40)
@given(problems(), seeds)
def test_nothing_unseen_reaches_a_result(problem, seed):
    """Not NaN in blocks that nobody lists, nor in keys hidden from all, nor what follows counts."""
    q, k, v = problem.tensors
    mask = problem.mask().unflatten(1, (k.shape[1], -1))
    unseen = ~mask.any(2).any(-2)[..., None]
    g = gradients_like(problem, seed)
    plain = replace(problem, tensors=(q, *(x.masked_fill(unseen, 0) for x in (k, v))))
    dirty = replace(problem, tensors=(q, *(x.masked_fill(unseen, torch.nan) for x in (k, v))))
    swept = [
        x if i not in (1, 3) or x is None else torch.where(live(x, problem.lists[i - 1]), x, 0)
        for i, x in enumerate(problem.lists)
    ]
    clean = replace(plain, lists=tuple(swept))
    for ours, theirs in zip(*(differentiate(p, Problem.attend, *g) for p in (dirty, clean))):
        assert torch.equal(ours, theirs)


def live(idx: Tensor, num: Tensor) -> Tensor:
    return torch.arange(idx.shape[-1]) < num[..., None]


def test_rows_past_the_end_see_nothing():
    """Of a query block of 4 with 3 rows, only the fourth would see the key that is NaN."""
    q, k, v = torch.randn(1, 1, 3, 8), torch.randn(1, 1, 4, 8), torch.randn(1, 1, 4, 8)
    see = torch.ones(4, 4, dtype=torch.bool)
    see[:3, 2] = False
    num, idx = torch.ones(1, 1, 1, dtype=torch.int32), torch.zeros(1, 1, 1, 1, dtype=torch.int32)
    problem = Problem((q, k, v), (None, None, num, idx, see), (4, 4), 1.0)
    k[:, :, 2] = v[:, :, 2] = torch.nan
    for result in differentiate(problem, Problem.attend, *gradients_like(problem, 0)):
        assert result.isfinite().all()


@settings(max_examples=40)
@given(problems(), seeds)
def test_rows_that_see_nothing_take_no_part(problem, seed):
    q, k, v = problem.tensors
    blind = ~problem.mask().any(-1)
    g, g_lse = gradients_like(problem, seed)
    dirty = replace(problem, tensors=(q.masked_fill(blind[..., None], torch.nan), k, v))
    results = [
        differentiate(dirty, Problem.attend, g.masked_fill(blind[..., None], torch.nan), g_lse),
        differentiate(problem, Problem.attend, g, g_lse),
    ]
    for ours, theirs in zip(*results):
        assert torch.equal(ours, theirs)


@settings(max_examples=40)
@given(problems(), seeds, st.sampled_from("kv"))
def test_nan_that_is_seen_shows(problem, seed, where):
    q, k, v = problem.tensors
    generator = torch.Generator().manual_seed(seed)
    hit = torch.rand(k.shape[:3], generator=generator)[..., None] < 0.1
    k, v = (x.masked_fill(hit, torch.nan) if name == where else x for name, x in zip("kv", (k, v)))
    sees = problem.mask() & hit[..., 0].repeat_interleave(q.shape[1] // k.shape[1], 1)[:, :, None]
    out, lse = replace(problem, tensors=(q, k, v)).attend()
    assert out[sees.any(-1)].isnan().all()
    assert where == "v" or lse[sees.any(-1)].isnan().all()


@settings(max_examples=40)
@given(problems(), seeds)
def test_strides_and_uninitialised_memory_do_not_matter(problem, seed):
    g = gradients_like(problem, seed)
    plain = differentiate(problem, Problem.attend, *g)
    strided = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in problem.tensors)
    torch.use_deterministic_algorithms(True)  # which fills what torch.empty returns with NaN
    try:
        other = differentiate(replace(problem, tensors=strided), Problem.attend, *g)
    finally:
        torch.use_deterministic_algorithms(False)
    for ours, theirs in zip(other, plain):
        assert torch.equal(ours, theirs)


@settings(max_examples=25)
@given(problems())
def test_gradcheck(problem):
    problem = problem.to(torch.float64)
    sees = problem.mask().any(-1)

    def attend(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = replace(problem, tensors=tensors).attend()
        return out, lse[sees]

    inputs = tuple(x.requires_grad_() for x in problem.tensors)
    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)


def small() -> Problem:
    """Full and partial blocks, two heads on one, ragged lengths; every row sees something."""
    generator = torch.Generator().manual_seed(0)
    shapes = (1, 2, 30, 8), (1, 1, 27, 8), (1, 1, 27, 8)
    tensors = tuple(torch.randn(shape, generator=generator) for shape in shapes)
    full_idx = torch.tensor([[2, 0], [1, 7], [0, 3], [3, 2]], dtype=torch.int32)[None, None]
    full_num = torch.tensor([2, 1, 2, 1], dtype=torch.int32)[None, None]
    partial_idx = torch.tensor([[1], [3], [2], [0]], dtype=torch.int32)[None, None]
    partial_num = torch.ones(1, 1, 4, dtype=torch.int32)
    part = (torch.arange(8) % 3 > 0).expand(1, 1, 1, 4, 1, 8)
    return Problem(tensors, (full_num, full_idx, partial_num, partial_idx, part), (8, 8), 8**-0.5)


def differentiates_well(problem: Problem, attend, plain) -> None:
    results = []
    for f, p in (attend, problem), (plain, problem), (plain, problem.to(torch.float64)):
        inputs = tuple(x.requires_grad_() for x in p.to(p.tensors[0].dtype).tensors)
        loss = f(replace(p, tensors=inputs))
        results.append([loss.detach(), *torch.autograd.grad(loss, inputs, materialize_grads=True)])
    ours, eager, exact = results
    assert_accurate(ours, [eager], exact, problem.tensors)


@pytest.mark.parametrize("used", [0, 1])
def test_either_result_may_go_unused(used):
    differentiates_well(small(), lambda p: p.attend()[used].sum(), lambda p: p.dense()[used].sum())


def test_compiles_whole_with_gradients():
    def loss(attend):
        def f(p: Problem) -> Tensor:
            q, k, v = p.tensors
            out, lse = attend(replace(p, tensors=(q.sin(), k, v)))
            return (out.cos() * lse[..., None]).sum()

        return f

    compiled = torch.compile(loss(Problem.attend), fullgraph=True)
    differentiates_well(small(), compiled, loss(Problem.dense))


def test_opcheck():
    problem = small()
    tensors = tuple(x.requires_grad_() for x in problem.tensors)
    arguments = (*tensors, *problem.lists, *problem.blocks, problem.scale)
    torch.library.opcheck(block_sparse_attention, arguments)
