"""The kernels that prune and restore, in Triton's interpreter, against their twins and fp64.

``kernels()`` sends CPU tensors the way of CUDA; on a GPU the kernels are tested by tests/gpu.
"""

import math
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_accurate, poison, seeds
from query_problems import draw_queries, prune
from torch.nn.functional import pad

from flexsparse import VideoTiling, restore_queries
from flexsparse.kernels.prune_queries import prune_queries as prune_op
from flexsparse.kernels.prune_queries import quota_of
from flexsparse.kernels.restore_rows import restore_rows as restore_op
from flexsparse.stages.queries import choose_queries, gather_rows, prune_scaled
from flexsparse.stages.windows import Windows

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton compiles here")

KEEPS = [0.1, 0.3, 0.5, 0.75, 0.99]
FILLS = st.sampled_from(["nearest", "center"])


def kernels():
    return mock.patch.object(torch.Tensor, "is_cuda", True)


@st.composite
def problems(draw):
    """Windows of few tiles (a program of each takes the interpreter 30 ms): ragged, spare rows."""
    window = draw(st.sampled_from([(2, 2, 2), (3, 5, 2), (1, 2, 3), (2, 1, 5), (1, 1, 1)]))
    parts = draw(st.sampled_from([(1, 1, 1), (1, 1, 2), (2, 2, 1), (1, 3, 1), (2, 1, 2)]))
    tile = tuple(w * p for w, p in zip(window, parts))
    tiles = st.tuples(*(st.integers(t, 2 * t) for t in tile)).map(lambda v: VideoTiling(v, tile))
    tiling = draw(tiles.filter(lambda t: t.num_tiles <= 4))
    spare = draw(st.sampled_from([0, 0, 16]))
    tiling = VideoTiling(tiling.video, tiling.tile, tiling.rows + spare)
    return Windows(tiling, draw(st.sampled_from(KEEPS)), draw(st.sampled_from([window, tile])))


def draw_whole(windows, seed, dim=16):
    """Few different queries of whole numbers: sums are exact in any order, and cosines tie."""
    generator = torch.Generator().manual_seed(seed)
    of = torch.randint(-2, 3, (5, dim), generator=generator).float()
    return of[torch.randint(5, (1, 2, windows.tiling.tokens), generator=generator)]


@settings(max_examples=15)
@given(problems(), seeds, st.sampled_from([16, 24]))
def test_the_choice_its_rows_and_their_gradient_are_the_twins(windows, seed, dim):
    tiling = windows.tiling
    q = poison(tiling.to_tiles(draw_whole(windows, seed, dim)), tiling).requires_grad_()
    with kernels():
        kept = prune(q, windows)
    assert kept.index.dtype == torch.int32
    assert torch.equal(kept.index, choose_queries(q.detach(), windows)), "ties go to the lower"
    assert torch.equal(kept.q, gather_rows(q, kept.index, tiling.rows, holes=True))
    g = draw_queries(windows, seed, dim)[:1, :1].expand(-1, 2, -1, -1)
    g = gather_rows(tiling.to_tiles(g), kept.index, tiling.rows, holes=True)
    g = torch.where(kept.index.flatten(2)[..., None] < 0, torch.nan, g)  # of holes
    (dq,) = torch.autograd.grad(kept.q, q, g)
    due = tiling.to_tiles(draw_queries(windows, seed, dim)[:1, :1]) * kept.mask[..., None]
    assert torch.equal(dq, due)


@settings(max_examples=5)
@given(problems(), seeds, st.sampled_from([torch.float16, torch.float32]))
def test_rows_and_gradient_alone_are_scaled_and_rounded_once(windows, seed, dtype):
    tiling, factor = windows.tiling, 128**-0.5
    q = tiling.to_tiles(draw_queries(windows, seed)[:1, :2].to(dtype)).requires_grad_()
    with kernels():
        kept = prune(q, windows)
        ours = prune_scaled(q, tiling, factor, keep=windows.keep, window=windows.window)
    assert torch.equal(ours.index, kept.index) and torch.equal(ours.pooled, kept.pooled)
    pairs = (ours.q, kept.q.detach()), (kept.q, ours.q.detach())
    scaled, plain = (torch.autograd.grad(y, q, g)[0] for y, g in pairs)
    assert torch.equal(scaled, plain) and torch.equal(ours.q, kept.q * factor)


@settings(max_examples=15)
@given(problems(), seeds, st.sampled_from([torch.float16, torch.float32, torch.float64]))
def test_the_mean_of_the_kept_is_as_good_as_plain_pytorchs(windows, seed, dtype):
    tiling = windows.tiling
    q = tiling.to_tiles(draw_queries(windows, seed)[:1, :2].to(dtype)).requires_grad_()
    with kernels():
        kept = prune(poison(q, tiling), windows)
    assert prune(q, windows).pooled is None and not kept.pooled.requires_grad

    def mean(x):
        return x.unflatten(2, kept.index.shape[2:]).sum(3) / (kept.index >= 0).sum(-1)[..., None]

    wide = kept.q.detach().to(torch.promote_types(dtype, torch.float32))
    assert_accurate([kept.pooled], [[mean(wide)]], [mean(wide.double())], [wide])


@settings(max_examples=15)
@given(problems(), seeds, FILLS, st.sampled_from([16, 144]))
def test_restored_rows_are_the_twins_and_stand_token_by_token(windows, seed, fill, dim):
    tiling = windows.tiling
    kept = prune(tiling.to_tiles(draw_whole(windows, seed)), windows)
    generator = torch.Generator().manual_seed(seed)
    out = torch.randn(*kept.q.shape[:3], dim, generator=generator)
    holes = kept.index.flatten(2)[..., None] < 0
    due = restore_queries(out, kept, tiling, fill=fill)
    out, wide = torch.where(holes, torch.nan, out).requires_grad_(), out.double().requires_grad_()
    with kernels():
        ours = restore_queries(out, kept, tiling, fill=fill)
    assert torch.equal(ours, due)
    assert ours.transpose(1, 2).is_contiguous(), "merging heads is a view"

    g = poison(torch.randn(ours.shape, generator=generator), tiling)
    plain = restore_queries(out, kept, tiling, fill=fill)
    exact = restore_queries(wide, kept, tiling, fill=fill)
    pairs = (ours, out), (plain, out), (exact, wide)
    ours, plain, exact = (torch.autograd.grad(y, x, g.to(x.dtype))[0] for y, x in pairs)
    assert_accurate([ours], [[plain]], [exact], [g.nan_to_num()])


@pytest.mark.parametrize("fill", ["nearest", "center"])
def test_strides_change_no_bit_and_neither_does_a_second_run(fill):
    windows = Windows(VideoTiling((3, 4, 4), (2, 4, 4)), 0.3, (2, 2, 2))
    tiling = windows.tiling
    q = tiling.to_tiles(draw_queries(windows, 0)[:, :2])
    generator = torch.Generator().manual_seed(0)
    out = torch.randn(2, 2, tiling.num_tiles * windows.kept_rows, 16, generator=generator)
    g_kept, g_restored = (torch.randn(x.shape, generator=generator) for x in (out, q))

    def run(layout):
        x, y = layout(q).requires_grad_(), layout(out).requires_grad_()
        with kernels():
            kept = prune(x, windows)
            restored = restore_queries(y, kept, tiling, fill=fill)
        (dx,) = torch.autograd.grad(kept.q, x, layout(g_kept))
        (dy,) = torch.autograd.grad(restored, y, layout(g_restored))
        return kept.q, kept.index, kept.pooled, restored, dx, dy

    first = run(torch.clone)
    for layout in (
        torch.clone,
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),  # heads split off the channels
        lambda x: pad(x, (16, 0, 1, 1, 1, 0), value=math.nan)[:, 1:, 1:-1, 16:],
        lambda x: x.mT.contiguous().mT,  # channels apart
    ):
        assert all(torch.equal(a, b) for a, b in zip(first, run(layout)))


def test_a_query_that_is_nan_stays_and_shows():
    tiling = VideoTiling((4, 4, 4))
    windows = Windows(tiling, 0.5, None)
    q = draw_queries(windows, 0)[:1, :1]
    center = 2 * 16 + 2 * 4 + 2
    for number in ([5], [row for row in range(64) if row != center]):
        q[:, :, number] = torch.nan
        with kernels():
            kept = prune(tiling.to_tiles(q), windows)
        assert (kept.index == 5).any() and (kept.index == center).any()
        assert kept.pooled.isnan().all()


def test_similarity_of_half_precision_is_taken_in_fp32():
    """In half precision neighbours tie, and the choice would lean to early tokens."""
    windows = Windows(VideoTiling((4, 8, 8)), 0.5, None)
    alike = draw_queries(windows, 0, dim=64) * 0.3 + 1  # cosines of about 0.9
    q = windows.tiling.to_tiles(alike.bfloat16())
    with kernels():
        index = prune(q, windows).index
    assert torch.equal(index, choose_queries(q.float(), windows))


def test_gradients_of_half_precision_are_added_up_in_fp32():
    windows = Windows(VideoTiling((8, 8, 8), (8, 8, 8)), 0.01, None)  # 512 rows to 6
    kept = prune(windows.tiling.to_tiles(draw_queries(windows, 0)[:1, :1]), windows)
    out = torch.zeros(kept.q.shape, dtype=torch.float16, requires_grad=True)
    with kernels():
        restored = restore_queries(out, kept, windows.tiling)
    g = torch.rand(restored.shape, generator=torch.Generator().manual_seed(1)).half()
    (found,) = torch.autograd.grad(restored, out, g)
    wide = out.detach().double().requires_grad_()
    exact = restore_queries(wide, kept, windows.tiling)
    (exact,) = torch.autograd.grad(exact, wide, g.double())
    assert torch.equal(found, exact.half()), "rounded once"


@triton.jit
def _quotas(out, KEEP: tl.constexpr, COUNT: tl.constexpr):
    tokens = tl.arange(0, COUNT)
    tl.store(out + tokens, quota_of(tokens, KEEP))


def test_a_quota_is_the_same_number_in_kernels_and_in_tables():
    tokens, found = torch.arange(1024), torch.empty(1024, dtype=torch.int32)
    tiling = VideoTiling((8, 8, 16), (8, 8, 16))
    parts = {a / b for b in (3, 7, 12, 60, 64, 100, 125, 1000) for a in range(1, b, b // 70 + 1)}
    near = {math.nextafter(x, way) for x in parts for way in (0, 1)}
    for keep in (*parts, *near, 1e-9, 5e-10, 15e-9, 1 - 1e-12):
        _quotas[(1,)](found, KEEP=keep, COUNT=1024)
        assert torch.equal(found.long(), Windows(tiling, keep).quota(tokens)), keep


@pytest.mark.parametrize("op", [prune_op, restore_op])
def test_the_kernels_are_well_formed_operators(op):
    windows = Windows(VideoTiling((3, 5, 4), (2, 4, 4)), 0.5, (2, 2, 2))
    tiling = windows.tiling
    shape = list(tiling.video), list(tiling.tile), tiling.rows, list(windows.size)
    q = torch.randn(1, 2, tiling.padded_tokens, 16)
    kept = prune(q, windows)
    if op is prune_op:
        arguments = q, *shape, windows.keep, windows.per_window, windows.kept_rows
    else:
        arguments = kept.q, kept.index, *shape, windows.per_window, False
    arguments[0].requires_grad_()
    # Triton's interpreter cannot run on fake tensors
    checks = ["test_schema", "test_autograd_registration"]
    torch.library.opcheck(op, arguments, test_utils=checks)
