"""Pruning and restoring queries: the laws of the choice, of the rows, and of their gradients."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import poison, seeds
from query_problems import draw_queries, kept_tokens, problems, prune

from flexsparse import VideoTiling, prune_queries, reference, restore_queries
from flexsparse.stages.queries import choose_queries
from flexsparse.stages.windows import Windows


@given(problems(), seeds)
def test_the_least_similar_and_the_center_stay(windows, seed):
    q = draw_queries(windows, seed)
    kept = kept_tokens(prune(windows.tiling.to_tiles(q), windows))
    shape = windows.tiling.video, windows.tiling.tile, windows.window
    of_token, center = reference.windows_of_tokens(*shape)
    assert kept[..., center.unique()].all()
    wide = q.double()
    similarity = torch.cosine_similarity(wide, wide[..., center, :], dim=-1)
    for window in of_token.unique():
        inside = of_token == window
        stays, s = kept[..., inside], similarity[..., inside]
        size = inside.sum().item()
        assert (stays.sum(-1) == reference.quota(windows.keep, size)).all()
        others = stays & ~torch.isin(inside.nonzero().flatten(), center)
        worst = s.masked_fill(~others, -2).amax(-1)  # the most similar of those that stay
        best = s.masked_fill(stays, 2).amin(-1)  # the least similar of those that go
        assert (worst <= best + 1e-6).all()


@given(problems(), seeds)
def test_the_choice_is_the_oracles_but_for_near_ties(windows, seed):
    q = draw_queries(windows, seed, dim=4).double()
    kept = prune(windows.tiling.to_tiles(q), windows)
    shape = windows.tiling.video, windows.tiling.tile, windows.window
    assert torch.equal(kept_tokens(kept), reference.kept_queries(q, *shape, windows.keep))


@given(problems(), seeds)
def test_restoring_gives_kept_rows_back_and_fills_the_others(windows, seed):
    tiling = windows.tiling
    q = draw_queries(windows, seed)
    kept = prune(tiling.to_tiles(q), windows)
    stays = kept_tokens(kept)
    for fill in ("nearest", "center"):
        back = tiling.from_tiles(restore_queries(kept.q, kept, tiling, fill=fill))
        assert torch.equal(back[stays], q[stays])
        source = reference.sources(stays, tiling.video, tiling.tile, windows.window, fill)
        assert torch.equal(back, q.gather(-2, source.unsqueeze(-1).expand_as(q)))


@given(problems(), seeds)
def test_gradients_flow_to_the_rows_that_were_used(windows, seed):
    tiling = windows.tiling
    q = tiling.to_tiles(draw_queries(windows, seed)).double().requires_grad_()
    generator = torch.Generator().manual_seed(seed)
    g = torch.randint(-9, 9, q.shape, generator=generator).double()  # whole: sums are exact
    g = tiling.zero_padding(g)
    kept = prune(q, windows)
    (found,) = torch.autograd.grad(restore_queries(kept.q, kept, tiling), q, g)
    stays = kept_tokens(kept)
    source = reference.sources(stays, tiling.video, tiling.tile, windows.window, "nearest")
    due = torch.zeros_like(tiling.from_tiles(g))
    due.scatter_add_(-2, source.unsqueeze(-1).expand_as(due), tiling.from_tiles(g))
    assert torch.equal(tiling.from_tiles(found), due)
    assert not found[..., ~tiling.valid(), :].any()


@given(problems(), seeds)
def test_nan_in_padding_changes_nothing(windows, seed):
    tiling = windows.tiling
    clean = tiling.to_tiles(draw_queries(windows, seed))
    results = []
    for q in clean, poison(clean, tiling):
        q = q.requires_grad_()
        kept = prune(q, windows)
        out = restore_queries(kept.q, kept, tiling)
        g = torch.where(tiling.valid()[:, None], 1.0, torch.nan)  # in padding of the gradient, too
        results.append([kept.index, out, *torch.autograd.grad(out, q, g.expand_as(q))])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_a_query_that_is_nan_stays_and_shows():
    tiling = VideoTiling((4, 4, 4))
    windows = Windows(tiling, 0.5, None)
    q = draw_queries(windows, 0)
    center = 2 * 16 + 2 * 4 + 2
    for number in ([5], [row for row in range(64) if row != center]):
        q[:, :, number] = torch.nan
        index = prune(tiling.to_tiles(q), windows).index
        assert (index == 5).any(-1).all() and (index == center).any(-1).all()


def test_similarity_of_half_precision_is_taken_in_fp32():
    """In bf16 neighbours tie, and the choice would lean to early tokens."""
    windows = Windows(VideoTiling((4, 8, 8)), 0.5, None)
    q = draw_queries(windows, 0, dim=64).bfloat16()
    tiled, wide = windows.tiling.to_tiles(q), windows.tiling.to_tiles(q.float())
    assert torch.equal(choose_queries(tiled, windows), choose_queries(wide, windows))


def test_what_stays_is_a_whole_number_in_spite_of_rounding():
    windows = Windows(VideoTiling((4, 5, 5), (4, 5, 5)), 0.07, None)
    assert windows.per_window == 7 and (windows.tables().quota == 7).all(), "0.07 * 100 > 7 in fp64"


def test_gradients_of_half_precision_are_added_up_in_fp32():
    dtype = torch.bfloat16
    windows = Windows(VideoTiling((8, 8, 8), (8, 8, 8)), 0.01, None)
    kept = prune(windows.tiling.to_tiles(draw_queries(windows, 0, dtype=dtype)), windows)
    out = torch.zeros(kept.q.shape, dtype=dtype, requires_grad=True)
    wide = out.detach().double().requires_grad_()
    restored = restore_queries(out, kept, windows.tiling)
    g = torch.rand(restored.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (found,) = torch.autograd.grad(restored, out, g)
    exact = restore_queries(wide, kept, windows.tiling)
    (exact,) = torch.autograd.grad(exact, wide, g.double())
    assert torch.equal(found, exact.to(dtype)), "rounded once"


def test_keep_one_is_the_identity():
    tiling = VideoTiling((5, 6, 7))
    q = torch.randn(1, 2, tiling.padded_tokens, 16)
    kept = prune_queries(q, tiling, keep=1)
    assert kept.q is q
    assert torch.equal(restore_queries(kept.q, kept, tiling), tiling.zero_padding(q))


def test_a_constant_video_and_zero_queries_keep_the_lowest():
    tiling = VideoTiling((4, 4, 8))
    for value in 1.0, 0.0:
        q = torch.full((1, 1, tiling.padded_tokens, 16), value)
        kept = prune_queries(q, tiling, keep=0.25, window=(2, 2, 2))
        per_window = kept.index.unflatten(-1, (8, 2))
        center = Windows(tiling, 0.25, (2, 2, 2)).tables().center
        assert torch.equal(center, torch.full_like(center, 7))
        rows = Windows(tiling, 0.25, (2, 2, 2)).tables().rows
        assert torch.equal(per_window[0, 0].long(), rows[..., [0, 7]])


def test_the_choice_does_not_depend_on_batch_neighbours():
    tiling = VideoTiling((5, 6, 7))
    q = torch.randn(3, 2, tiling.padded_tokens, 16)
    whole = prune_queries(q, tiling).index
    assert torch.equal(whole[1:2], prune_queries(q[1:2], tiling).index)


def test_bad_input_is_one_clear_line():
    tiling, other = VideoTiling((4, 8, 8)), VideoTiling((4, 8, 9))
    q = torch.randn(1, 2, tiling.padded_tokens, 16)
    kept = prune_queries(q, tiling)
    for make, words in (
        (lambda: prune_queries(q, tiling, keep=0), r"^keep=0 must be in \(0, 1\]"),
        (lambda: prune_queries(q, tiling, keep=1.5), r"^keep=1.5"),
        (
            lambda: prune_queries(q, tiling, window=(3, 2, 2)),
            r"^window=\(3, 2, 2\) does not divide",
        ),
        (lambda: prune_queries(q, tiling, window=(8, 4, 4)), r"the tile \(4, 4, 4\)"),
        (lambda: prune_queries(q[:, :, :9], tiling), "^q has 9 rows"),
        (lambda: restore_queries(kept.q, kept, other), "were pruned in .* not in"),
        (lambda: restore_queries(q, kept, tiling), "^out is .*attention of the kept queries is"),
        (lambda: restore_queries(kept.q, kept, tiling, fill="far"), "^fill='far' must be one of"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            make()
        assert "\n" not in str(error.value)
    assert dataclasses.is_dataclass(kept)


@given(st.integers(1, 999), st.integers(1, 400))
def test_a_quota_is_the_same_number_in_python_and_in_tables(thousandths, volume):
    keep = thousandths / 1000
    windows = Windows(VideoTiling((1, 1, volume), (1, 1, volume)), keep)
    quota = windows.tables().quota.item()
    assert quota == windows.per_window == reference.quota(keep, volume)
    assert quota == -(-thousandths * volume // 1000)
