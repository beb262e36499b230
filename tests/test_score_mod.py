"""score_mod on the CPU: torch's results, and gradients of all, of what score_mod captures too."""

from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_accurate, seeds
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, create_mask
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flexsparse import VideoTiling, flex_attention, vsa_mask
from flexsparse.engines import cpu_scores

BOTH = AuxRequest(lse=True, max_scores=True)
LENGTHS, DIMS = (150, 230), (16, 24)


def causal(b, h, q, kv):
    return q + 40 >= kv


def by_head(b, h, q, kv):
    return (q - kv).abs() <= 20 * (h + 1) + 30 * b


def nothing_for_the_first(b, h, q, kv):
    return (q >= 40) & (kv < 100)


def relative(slope, bias):
    """Batch, query head, query and key all matter; some pairs, and whole rows, are hidden."""

    def score_mod(score, b, h, q, kv):
        score = score * slope[h] + bias[h, q] * bias[h, kv] * (b + 1)
        return torch.where(((q - kv).abs() <= 100) & (q != 7), score, -torch.inf)

    return score_mod


def softcapped(slope, bias):
    return lambda score, b, h, q, kv: slope[h] * (score / slope[h]).tanh() - bias[h, 0]


def problem(seed=0, heads=4, kv_heads=2, dtype=torch.float32, lengths=LENGTHS, dims=DIMS):
    """q, k, v, slope and bias; the last two in fp32 for half precision."""
    generator = torch.Generator().manual_seed(seed)
    (q_len, kv_len), (dim, v_dim) = lengths, dims
    shapes = (heads, q_len, dim), (kv_heads, kv_len, dim), (kv_heads, kv_len, v_dim)
    drawn = [torch.randn(2, *shape, generator=generator).to(dtype) for shape in shapes]
    slope = torch.rand(heads, generator=generator) + 1
    bias = torch.randn(heads, max(lengths), generator=generator)
    captured = slope, bias
    return [*drawn, *(x.to(torch.promote_types(dtype, torch.float32)) for x in captured)]


def ours(make, mask, **options):
    def attend(q, k, v, *captured):
        given: Any = dict(
            score_mod=make(*captured), block_mask=mask, enable_gqa=True, return_aux=BOTH
        )
        out, aux = flex_attention(q, k, v, **given, **options)
        return out, aux.lse, aux.max_scores

    return attend


def dense(make, mask, scale=0.25):
    """The same with all scores in memory, in the precision of torch's eager flex_attention."""

    def attend(q, k, v, *captured):
        wide = torch.promote_types(q.dtype, torch.float32)
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        at = [torch.arange(n) for n in (*q.shape[:3], k.shape[2])]
        at = [x.view(-1, *[1] * (3 - i)) for i, x in enumerate(at)]
        scores = make(*captured)((q.to(wide) @ k.to(wide).mT) * scale, *at)
        if mask is not None:
            see = create_mask(mask.mask_mod, 2, q.shape[1], q.shape[2], k.shape[2], "cpu")
            scores = scores.masked_fill(~see, -torch.inf)
        top = scores.detach().amax(-1)
        blind = top == -torch.inf
        scores = scores.masked_fill(blind[..., None], 0)
        out = (scores.softmax(-1).to(v.dtype) @ v).masked_fill(blind[..., None], 0)
        return out, scores.logsumexp(-1).masked_fill(blind, -torch.inf), top

    return attend


def differentiate(attend, inputs):
    """Results, with 0 for -inf, and gradients of all inputs."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out, lse, top = attend(*inputs)
    assert not top.requires_grad
    results = [out, *(x.masked_fill(x == -torch.inf, 0) for x in (lse, top))]
    generator = torch.Generator().manual_seed(1)
    drawn = (torch.randint(-16, 17, x.shape, generator=generator) for x in results[:2])
    g = [(x / 8).to(y.dtype) for x, y in zip(drawn, results)]  # which half precision holds exactly
    return [*results, *torch.autograd.grad(results[:2], inputs, g)]


def of_valid(attend, valid):
    """The results of valid rows."""

    def attend_valid(*inputs):
        out, *rest = attend(*inputs)
        rest = (x.masked_fill(~valid[..., 0], -torch.inf) for x in rest)
        return out.masked_fill(~valid, 0), *rest

    return attend_valid


def torch_eager(make, mask, q, k, v, *captured):
    given: Any = dict(score_mod=make(*captured), block_mask=mask, enable_gqa=True, scale=0.25)
    out, aux = torch_flex_attention(q, k, v, **given, return_aux=AuxRequest(lse=True))
    assert aux.lse is not None
    return out, aux.lse


@settings(max_examples=25)
@given(
    st.sampled_from([relative, softcapped]),
    st.sampled_from(
        [None, (causal, None, None), (by_head, 2, 4), (nothing_for_the_first, 2, None)]
    ),
    st.sampled_from([(128, 128), (64, 32), (16, 48)]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([1, cpu_scores.CHUNK]),
    seeds,
)
def test_any_mask_any_score_mod_and_gradients(make, masked, block, kv_heads, dtype, chunk, seed):
    mask = None
    if masked is not None:
        mask_mod, batch, heads = masked
        mask = create_block_mask(mask_mod, batch, heads, *LENGTHS, "cpu", BLOCK_SIZE=block)
    inputs = problem(seed, kv_heads=kv_heads, dtype=dtype)
    with mock.patch.object(cpu_scores, "CHUNK", chunk):
        found = differentiate(ours(make, mask, scale=0.25), inputs)
    plain = differentiate(dense(make, mask), inputs)
    doubles = [x.double() for x in inputs]
    exact = differentiate(dense(make, mask), doubles)
    theirs = torch_eager(make, mask, *doubles)
    exact[:2] = (x.masked_fill(x == -torch.inf, 0) for x in theirs)
    assert_accurate(found, [plain], exact, inputs)
    _, *found = ours(make, mask, scale=0.25)(*inputs)
    for x in found:
        assert torch.equal(x == -torch.inf, theirs[1] == -torch.inf)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_gradcheck(kv_heads):
    lengths = (20, 27)
    mask = create_block_mask(causal, None, None, *lengths, "cpu", BLOCK_SIZE=(8, 8))
    inputs = problem(0, 2, kv_heads, torch.float64, lengths, (4, 6))
    inputs = [x.requires_grad_() for x in inputs]

    def attend(*inputs):
        out, lse, _ = ours(relative, mask)(*inputs)
        return out, lse[:, :, 8:]  # a row that sees nothing has -inf

    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)
    with mock.patch.object(cpu_scores, "CHUNK", 1):
        assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)


@pytest.mark.parametrize(
    "video, tile, text", [((3, 5, 5), (2, 4, 4), 0), ((4, 4, 8), (2, 4, 4), 20)]
)
def test_nan_in_padding_reaches_nothing(video, tile, text):
    tiling = VideoTiling(video, tile, text=text)
    rows = tiling.padded_tokens
    q, k, v, *captured = problem(lengths=(rows, rows))
    lengths = torch.tensor([20, 3]) if text else None
    valid = tiling.valid(text_lengths=lengths).view(-1, 1, rows, 1)
    clean = [torch.where(valid, x, 0) for x in (q, k, v)]
    dirty = [torch.where(valid, x, torch.nan) for x in (q, k, v)]
    mask = vsa_mask(q, k.repeat_interleave(2, 1), tiling, top_k=2, text_lengths=lengths)

    assert (ours(relative, mask)(*dirty, *captured)[0].masked_fill(valid, 0) == 0).all()
    found = differentiate(of_valid(ours(relative, mask), valid), [*dirty, *captured])
    inputs = [*clean, *captured]
    plain, exact = (
        differentiate(of_valid(dense(relative, mask), valid), x)
        for x in (inputs, [x.double() for x in inputs])
    )
    assert_accurate(found, [plain], exact, inputs)


def test_a_block_in_no_list_may_hold_nan():
    """Lists of different lengths in one chunk, and a last block that keys do not fill."""

    def first_sees_less(b, h, q, kv):
        return (q >= 16) | (kv >= 32)

    mask = create_block_mask(first_sees_less, None, None, 40, 90, "cpu", BLOCK_SIZE=(16, 16))
    q, k, v, *captured = problem(lengths=(40, 90))
    for x in (k, v):
        x[:, :, :32] = torch.nan
    out, lse, top = ours(softcapped, mask)(q, k, v, *captured)
    for x in (out, lse, top):
        assert x[:, :, :16].isfinite().all()
        assert x[:, :, 16:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_score_mod_is_given_what_torch_gives_it(dtype):
    given = []

    def score_mod(score, *at):
        given.append([(x.dtype, x.shape) for x in (score, *at)])
        return score

    q, k, v, *_ = problem(dtype=dtype)
    flex_attention(q, k, v, score_mod=score_mod, enable_gqa=True)
    wide = torch.promote_types(dtype, torch.float32)
    assert given == [[(wide, ()), *[(torch.int64, ())] * 4]] * len(given)


def test_autocast_changes_nothing():
    inputs = problem()

    def attend(context):
        def attend(*inputs):
            with context:
                return ours(relative, None)(*inputs)

        return attend

    mixed, plain = torch.autocast("cpu", torch.bfloat16), nullcontext()
    for x, y in zip(*(differentiate(attend(context), inputs) for context in (mixed, plain))):
        assert torch.equal(x, y)


class Largest(TorchDispatchMode):
    """The most elements that any operator has returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.untyped_storage().nbytes() >= x.nbytes:
                self.elements = max(self.elements, x.numel())
        return out


def test_memory_is_that_of_a_chunk():
    mask = create_block_mask(causal, None, None, 1024, 1024, "cpu", BLOCK_SIZE=(64, 64))
    q, k, v, *captured = problem(lengths=(1024, 1024), dims=(4, 4))
    saved = {}  # elements by memory, which views share

    def keep(x):
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // 4
        return x

    chunk = 64 * 1024
    with mock.patch.object(cpu_scores, "CHUNK", 4 * chunk), Largest() as largest:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            differentiate(ours(softcapped, mask), [q, k, v, *captured])
    assert largest.elements <= chunk and sum(saved.values()) <= 4 * chunk


def test_max_scores_without_a_score_mod():
    mask = create_block_mask(causal, None, None, *LENGTHS, "cpu")
    *inputs, _, _ = problem()
    identity = lambda score, *_: score  # noqa: E731
    found = differentiate(ours(lambda: None, mask, scale=0.25), inputs)
    plain, exact = (
        differentiate(dense(lambda: identity, mask), x)
        for x in (inputs, [x.double() for x in inputs])
    )
    assert_accurate(found, [plain], exact, inputs)


def test_compiles_whole_with_gradients_and_without():
    """Two chunks, a mask that is made in the graph, what score_mod captures as well."""
    tiling = VideoTiling((3, 5, 5), (2, 4, 4))
    rows = tiling.padded_tokens
    inputs = problem(heads=2, kv_heads=1, lengths=(rows, rows))
    valid = tiling.valid().view(1, 1, rows, 1)

    def attend(function, padding):
        def attend(q, k, v, slope, bias):
            mask = vsa_mask(q, k.repeat_interleave(2, 1), tiling, top_k=2)
            q, k, v = (torch.where(valid, x.sin(), padding) for x in (q, k, v))
            return of_valid(function(relative, mask, scale=0.25), valid)(q, k, v, slope, bias.cos())

        return attend

    function = attend(ours, torch.nan)
    with mock.patch.multiple(cpu_scores, COMPILED_CHUNK=1, COMPILED_CHUNKS=2):
        found = differentiate(torch.compile(function, fullgraph=True), inputs)
        with torch.no_grad():
            out = torch.compile(function, fullgraph=True, backend="aot_eager")(*inputs)[0]
    plain, exact = (
        differentiate(attend(dense, 0), x) for x in (inputs, [x.double() for x in inputs])
    )
    assert_accurate([*found, out], [[*plain, plain[0]]], [*exact, exact[0]], inputs)
