"""BSA against the oracle, given the same two choices, and the laws of its mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_accurate, poison, seeds, tensors, with_fused
from laws import problems as vsa_problems
from test_queries import kept_tokens, problems
from torch.nn.attention.flex_attention import create_mask
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention
from torch.utils.checkpoint import checkpoint

from flexsparse import (
    Mass,
    Threshold,
    TopK,
    VideoTiling,
    bsa,
    bsa_attention,
    bsa_mask,
    flex_attention,
    prune_queries,
    reference,
    restore_queries,
    vsa_attention,
)
from flexsparse.stages import queries

rules = st.sampled_from([TopK(1), Threshold(2, max_tiles=3), Threshold(1.5), Mass(0.6), Mass(1)])
fills = st.sampled_from(["nearest", "center"])


def with_gradients(compute, inputs):
    out = compute(*inputs)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(out.shape, generator=generator).to(out.dtype)
    return out, *torch.autograd.grad(out, inputs, grad)


def check_against_oracle(windows, inputs, rule, fill, groups=1, query_tiles=1):
    """Outputs and gradients of q, k and v, in raster order, given our choices."""
    tiling, (q, k, _) = windows.tiling, inputs
    settings_ = dict(keep=windows.keep, window=windows.window)
    kept = prune_queries(tiling.to_tiles(q), tiling, **settings_)
    choice = dict(kv=rule, query_tiles=min(query_tiles, tiling.num_tiles))
    tile_map = bsa.bsa_tile_map(kept, tiling.to_tiles(k), tiling, **choice)

    def ours(*x):
        x = [tiling.to_tiles(t) for t in x]
        options = dict(fill=fill, enable_gqa=groups > 1, **choice, **settings_)
        return tiling.from_tiles(bsa_attention(*x, tiling, **options))

    def oracle(dtype):
        def compute(q, k, v):
            k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
            choices = dict(tile_map=tile_map, kept=kept_tokens(kept), fill=fill, dtype=dtype)
            return reference.bsa(q, k, v, tiling.video, tiling.tile, **settings_, **choices)

        return compute

    doubles = [x.detach().double().requires_grad_() for x in inputs]
    exact = with_gradients(oracle(torch.float64), doubles)
    compute = oracle(inputs[0].dtype)
    plain = [with_gradients(compute, inputs), with_fused(with_gradients, compute, inputs)]
    assert_accurate(with_gradients(ours, inputs), plain, exact, inputs)


@settings(max_examples=40)
@given(
    problems(),
    seeds,
    rules,
    fills,
    st.sampled_from([1, 8, 64]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([16, 48, 256]),
    st.sampled_from([1, 2, 3]),
)
def test_outputs_and_gradients_equal_the_oracle(
    windows, seed, rule, fill, logits, dtype, dim, query_tiles
):
    problem = dict(tiling=windows.tiling, seed=seed, batch=2, heads=2, dim=dim)
    inputs = tensors(3, problem, logits, dtype)
    check_against_oracle(windows, inputs, rule, fill, query_tiles=query_tiles)


@settings(max_examples=15)
@given(problems(), seeds, rules)
def test_query_groups_share_keys(windows, seed, rule):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, windows.tiling.tokens, 16)
    inputs = [torch.randn(1, h, *shape[1:], generator=generator) for h in (4, 2, 2)]
    check_against_oracle(windows, [x.requires_grad_() for x in inputs], rule, "nearest", groups=2)


@given(problem=vsa_problems())
def test_keeping_all_of_both_is_dense_attention(problem):
    inputs, tiling = tensors(3, problem), problem["tiling"]

    def ours(*x):
        tiled = [tiling.to_tiles(t) for t in x]
        return tiling.from_tiles(bsa_attention(*tiled, tiling, keep=1, kv=Mass(1)))

    dense = torch.nn.functional.scaled_dot_product_attention
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    exact = with_gradients(dense, doubles)
    math = reference.attention
    plain = [
        with_gradients(dense, inputs),
        with_gradients(lambda q, k, v: math(q, k, v, torch.ones(1, dtype=torch.bool)), inputs),
    ]
    assert_accurate(with_gradients(ours, inputs), plain, exact, inputs)


@given(st.data(), vsa_problems())
def test_keeping_all_queries_with_top_k_is_vsa(data, problem):
    tiling = problem["tiling"]
    q, k, v = (tiling.to_tiles(x.detach()) for x in tensors(3, problem))
    top_k = data.draw(st.integers(1, tiling.num_tiles))
    together = dict(query_tiles=problem["query_tiles"])
    ours = bsa_attention(q, k, v, tiling, keep=1, kv=TopK(top_k), **together)
    assert torch.equal(ours, vsa_attention(q, k, v, tiling, top_k=top_k, **together))


@settings(max_examples=30)
@given(problems(), seeds, rules, st.sampled_from([1, 2, 3]))
def test_mask_mod_lists_and_torchs_flex_attention_agree(windows, seed, rule, query_tiles):
    tiling = windows.tiling
    per_block = min(query_tiles, tiling.num_tiles)
    problem = dict(tiling=tiling, seed=seed, batch=2, heads=2, dim=16)
    q, k, v = (tiling.to_tiles(x.detach()) for x in tensors(3, problem))
    kept = prune_queries(q, tiling, keep=windows.keep, window=windows.window)
    mask = bsa_mask(kept, k, tiling, kv=rule, query_tiles=per_block)
    tile_map = bsa.bsa_tile_map(kept, k, tiling, kv=rule, query_tiles=per_block)
    dense = create_mask(mask.mask_mod, 2, 2, *mask.seq_lengths, "cpu")
    whole = tile_map.repeat_interleave(kept.q_rows, -2).repeat_interleave(tiling.rows, -1)
    assert torch.equal(dense, whole & tiling.valid())
    tile_map = tile_map[:, :, ::per_block]  # of query blocks
    assert torch.equal(mask.to_dense().bool(), tile_map)
    by_key = (mask.q_num_blocks, 0 if mask.full_q_num_blocks is None else mask.full_q_num_blocks)
    assert torch.equal(by_key[0] + by_key[1], tile_map.sum(-2, dtype=torch.int32))
    for num, idx in (
        (mask.q_num_blocks, mask.q_indices),
        (
            mask.full_q_num_blocks,
            mask.full_q_indices,
        ),
    ):
        places = *tile_map.shape[:2], tiling.num_tiles
        for b, h, j in torch.cartesian_prod(*map(torch.arange, places)).tolist():
            listed = [] if num is None else idx[b, h, j, : num[b, h, j]].tolist()
            assert all(tile_map[b, h, i, j] for i in listed) and len({*listed}) == len(listed)
    plain = [kept.q, k, v]
    ours = restore_queries(flex_attention(*plain, block_mask=mask), kept, tiling)
    torchs, exact = (
        restore_queries(torch_flex_attention(*qkv, block_mask=mask), kept, tiling)
        for qkv in (plain, [x.double() for x in plain])
    )
    assert_accurate([ours], [[torchs]], [exact], plain)


@given(problems(), seeds, rules)
def test_nan_in_padding_changes_nothing(windows, seed, rule):
    tiling = windows.tiling
    problem = dict(tiling=tiling, seed=seed, batch=1, heads=2, dim=16)
    clean = [tiling.to_tiles(x.detach()) for x in tensors(3, problem)]
    results = []
    for change in (lambda x: x), (lambda x: poison(x, tiling)):
        inputs = [change(x).requires_grad_() for x in clean]
        out = bsa_attention(*inputs, tiling, keep=windows.keep, window=windows.window, kv=rule)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*results))


@given(problems(), seeds, rules, st.sampled_from([1, 2, 3]))
def test_tiles_are_chosen_by_the_means_of_the_queries_that_stay(windows, seed, rule, query_tiles):
    tiling = windows.tiling
    size = min(query_tiles, tiling.num_tiles)
    problem = dict(tiling=tiling, seed=seed, batch=2, heads=2, dim=16)
    q, k = (tiling.to_tiles(x.detach()) for x in tensors(2, problem))
    kept = prune_queries(q, tiling, keep=windows.keep, window=windows.window)
    stays = tiling.from_tiles(kept.mask[..., None])[..., 0]
    raster = [tiling.from_tiles(x).double() for x in (q, k)]
    scores = reference.kept_scores(*raster, stays, tiling.video, tiling.tile, size)
    found = bsa.bsa_tile_map(kept, k, tiling, kv=rule, query_tiles=size)
    due = rule(scores.float())
    agree = found == due
    assert agree.all(-1).double().mean() >= 0.9, "but for near ties"


def test_a_recomputed_layer_chooses_the_same(monkeypatch):
    tiling = VideoTiling((5, 8, 9))
    generator = torch.Generator().manual_seed(0)
    shape = (1, 2, tiling.padded_tokens, 16)
    inputs = [torch.randn(shape, generator=generator).requires_grad_() for _ in range(3)]
    choices = []
    real = queries.choose_queries
    monkeypatch.setattr(
        queries, "choose_queries", lambda *a: choices.append(real(*a)) or choices[-1]
    )

    def attend(q, k, v):
        return bsa_attention(q.sin(), k.cos(), v, tiling, window=(2, 2, 2), kv=Mass(0.7))

    plain = torch.autograd.grad(attend(*inputs).square().sum(), inputs)
    again = checkpoint(attend, *inputs, use_reentrant=False)
    found = torch.autograd.grad(again.square().sum(), inputs)
    assert len(choices) == 3 and torch.equal(choices[1], choices[2])
    assert all(torch.equal(a, b) for a, b in zip(plain, found))


@pytest.mark.parametrize(
    "rule, backend",
    [(Threshold(3), "inductor"), (Mass(0.8, max_tiles=6), "aot_eager_decomp_partition")],
)
def test_it_compiles_whole_and_once(rule, backend):
    tiling = VideoTiling((5, 8, 9))

    def attend(q, k, v):
        return bsa_attention(q, k, v, tiling, window=(2, 2, 2), kv=rule)

    compiled = torch.compile(attend, fullgraph=True, dynamic=False, backend=backend)
    torch._dynamo.utils.counters.clear()
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        shape = (1, 2, tiling.padded_tokens, 16)
        inputs = [torch.randn(shape, generator=generator).requires_grad_() for _ in range(3)]
        exact = with_gradients(attend, [x.detach().double().requires_grad_() for x in inputs])
        assert_accurate(
            with_gradients(compiled, inputs), [with_gradients(attend, inputs)], exact, inputs
        )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_bad_input_is_one_clear_line():
    tiling, other = VideoTiling((4, 8, 8)), VideoTiling((4, 8, 12))
    q = torch.randn(1, 3, tiling.padded_tokens, 16)
    kept = prune_queries(q, tiling)
    for make, words in (
        (lambda: bsa_attention(q, q, q, tiling, kv=0), r"^kv=0 must be an int in 1..4"),
        (lambda: bsa_attention(q, q, q, tiling, kv=TopK(5)), "asks for 5 tiles of 4"),
        (lambda: bsa_attention(q, q[:, :2], q[:, :2], tiling, kv=1), "3 heads, k 2"),
        (lambda: bsa_mask(kept, q, other, kv=1), "were pruned in .* not in"),
        (lambda: bsa_mask(kept, q[:, :, :9], tiling, kv=1), "^k has 9 rows"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            make()
        assert "\n" not in str(error.value)
