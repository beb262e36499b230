"""Text beside video: everyone attends to it, and it to everyone, at any length."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_accurate, seeds, tensors, tilings, with_fused
from query_problems import kept_tokens
from test_vsa import results

from flexsparse import (
    Mass,
    Threshold,
    TopK,
    VideoTiling,
    bsa_attention,
    bsa_mask,
    flex_attention,
    prune_queries,
    reference,
    restore_queries,
    vsa_attention,
    vsa_mask,
)
from flexsparse.bsa import bsa_tile_map
from flexsparse.engines.dense import dense_attention
from flexsparse.flops import attention_flops
from flexsparse.nn import BSA, VSA
from flexsparse.vsa import vsa_tile_map

rules = st.sampled_from([TopK(1), Threshold(1.5), Mass(0.6), Mass(1)])


@st.composite
def problems(draw):
    """A tiling with text, lengths of the batch's texts or None, and the rest of a problem."""
    text = draw(st.integers(1, 70))
    tiling = replace(draw(tilings(6).filter(lambda t: 8 <= t.tokens <= 150)), text=text)
    batch = draw(st.integers(1, 3))
    lengths = st.lists(st.integers(0, text), min_size=batch, max_size=batch).map(torch.tensor)
    return dict(
        tiling=tiling,
        batch=batch,
        heads=draw(st.integers(1, 2)),
        dim=draw(st.sampled_from([16, 48])),
        seed=draw(seeds),
        rule=draw(rules),
        query_tiles=min(draw(st.sampled_from([1, 1, 2])), tiling.num_tiles),
        text_lengths=draw(st.none() | lengths),
    )


def there(problem):
    """Which tokens there are, bool [B or 1, 1, tokens, 1]."""
    tiling, lengths = problem["tiling"], problem["text_lengths"]
    ends = torch.tensor([tiling.text]) if lengths is None else lengths
    token = torch.arange(tiling.tokens)
    return (token < tiling.of_video.tokens + ends[:, None])[:, None, :, None]


def poisoned(x, problem):
    """Tile-major, with NaN in padding and in text that is not there."""
    tiling = problem["tiling"]
    tiled = tiling.to_tiles(torch.where(there(problem), x, torch.nan))
    return torch.where(tiling.valid()[:, None], tiled, torch.nan)


def check(problem, ours, oracle, inputs):
    """Outputs and gradients in raster order; what stands where no token is has no effect."""
    tiling, seed, dtype = problem["tiling"], problem["seed"], inputs[0].dtype
    found = results(lambda *x: tiling.from_tiles(ours(*map(tiling.to_tiles, x))), inputs, seed)
    plain = [f(lambda *x: oracle(dtype, *x), inputs, seed) for f in (results,)]
    plain.append(with_fused(results, lambda *x: oracle(dtype, *x), inputs, seed))
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    exact = results(lambda *x: oracle(torch.float64, *x), doubles, seed)
    assert_accurate(found, plain, exact, inputs)
    soiled = [poisoned(x.detach(), problem).requires_grad_() for x in inputs]
    out = ours(*soiled)
    assert torch.equal(tiling.from_tiles(out), found[0])
    assert not out.where(tiling.to_tiles(there(problem).expand_as(found[0]).float()) == 0, 0).any()
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(found[0].shape, generator=generator, dtype=torch.float64).to(dtype)
    grads = torch.autograd.grad(out, soiled, poisoned(grad, problem))
    for ours_, clean in zip(grads, found[1:], strict=True):
        assert torch.equal(tiling.from_tiles(ours_), clean)


@settings(max_examples=20)
@given(problems(), st.integers(0, 2), st.sampled_from([1.0, 64.0]))
def test_vsa_equals_the_oracle(problem, gates, scale):
    tiling, lengths = problem["tiling"], problem["text_lengths"]
    inputs = tensors(3 + gates, problem, scale)
    choice = dict(top_k=problem["rule"], query_tiles=problem["query_tiles"])
    chosen = vsa_tile_map(*map(tiling.to_tiles, inputs[:2]), tiling, **choice)
    names = "gate_coarse", "gate_fine"

    def ours(q, k, v, *given):
        given = dict(zip(names, given))
        return vsa_attention(q, k, v, tiling, text_lengths=lengths, **choice, **given)

    def oracle(dtype, q, k, v, *given):
        options = dict(zip(names, given)) | dict(dtype=dtype, tile_map=chosen, text_lengths=lengths)
        return reference.vsa(q, k, v, tiling.video, tiling.tile, top_k=0, **options)

    check(problem, ours, oracle, inputs)


@settings(max_examples=10)
@given(problems(), st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(1, 2))
def test_vsa_with_parts_of_the_text_in_its_coarse_stage_equals_the_oracle(problem, parts, gates):
    parts = tuple(parts)
    tiling = replace(problem["tiling"], text=sum(parts), parts=parts)
    problem |= dict(tiling=tiling, text_lengths=None)
    inputs = tensors(3 + gates, problem)
    choice = dict(top_k=problem["rule"], query_tiles=problem["query_tiles"])
    chosen = vsa_tile_map(*map(tiling.to_tiles, inputs[:2]), tiling, **choice)
    names = "gate_coarse", "gate_fine"

    def ours(q, k, v, *given):
        return vsa_attention(q, k, v, tiling, **choice, **dict(zip(names, given)))

    def oracle(dtype, q, k, v, *given):
        options = dict(zip(names, given)) | dict(dtype=dtype, tile_map=chosen)
        options |= dict(parts=parts, rows=tiling.rows)
        return reference.vsa(q, k, v, tiling.video, tiling.tile, top_k=0, **options)

    check(problem, ours, oracle, inputs)


def test_parts_of_the_text_that_cannot_be_are_named():
    for parts in ((3, 4), (8, 0), (9, -1)):
        with pytest.raises(ValueError, match=r"parts=.* positive ints of sum text=8"):
            VideoTiling((2, 4, 4), text=8, parts=parts)
    tiling = VideoTiling((2, 4, 4), text=8, parts=(3, 5))
    q = torch.randn(1, 1, tiling.padded_tokens, 16)
    with pytest.raises(ValueError, match=r"parts=\(3, 5\) of the text, which have one length"):
        vsa_attention(q, q, q, tiling, top_k=1, text_lengths=torch.tensor([4]))


@settings(max_examples=20)
@given(
    problems(),
    st.sampled_from([0.25, 0.5, 0.75, 1.0]),
    st.sampled_from(["nearest", "center"]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_bsa_equals_the_oracle(problem, keep, fill, dtype):
    tiling, lengths = problem["tiling"], problem["text_lengths"]
    inputs = tensors(3, problem, dtype=dtype)
    choice = dict(kv=problem["rule"], query_tiles=problem["query_tiles"])
    video = tiling.of_video
    of_video = [x[..., : video.tokens, :] for x in inputs]
    kept = prune_queries(video.to_tiles(of_video[0]), video, keep=keep)
    chosen = bsa_tile_map(kept, video.to_tiles(of_video[1]), video, **choice)

    def ours(q, k, v):
        options = dict(keep=keep, fill=fill, text_lengths=lengths)
        return bsa_attention(q, k, v, tiling, **choice, **options)

    def oracle(dtype, q, k, v):
        options = dict(kept=kept_tokens(kept), tile_map=chosen, fill=fill, text_lengths=lengths)
        sizes = tiling.video, tiling.tile
        return reference.bsa(q, k, v, *sizes, keep=keep, window=tiling.tile, dtype=dtype, **options)

    check(problem, ours, oracle, inputs)


@settings(max_examples=10)
@given(problems())
def test_all_tiles_is_dense_attention_over_what_there_is(problem):
    tiling, lengths = problem["tiling"], problem["text_lengths"]
    inputs = tensors(3, problem)
    keys = there(problem).transpose(-1, -2)

    def joint(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, keys).where(there(problem), 0)

    def tiled(compute):
        return lambda *x: tiling.from_tiles(compute(*map(tiling.to_tiles, x)))

    options = dict(text_lengths=lengths)
    computes = [
        lambda *x: dense_attention(*x, tiling, **options),
        lambda *x: vsa_attention(*x, tiling, top_k=tiling.num_tiles, **options),
        lambda *x: vsa_attention(*x, tiling, top_k=None, **options),
        lambda *x: bsa_attention(*x, tiling, kv=Mass(1), keep=1, **options),
    ]
    eager = results(joint, inputs, problem["seed"])
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    exact = results(joint, doubles, problem["seed"])
    for compute in computes:
        assert_accurate(results(tiled(compute), inputs, problem["seed"]), [eager], exact, inputs)


@settings(max_examples=12)
@given(problems(), st.sampled_from([0.5, 1.0]))
def test_one_mask_for_all_queries_says_the_same(problem, keep):
    """`flex_attention` with the whole mask, to the last digit that sums in another order leave."""
    tiling, lengths, rule = problem["tiling"], problem["text_lengths"], problem["rule"]
    tiling = problem["tiling"] = replace(tiling, rows=tiling.rows)
    q, k, v = (poisoned(x.detach(), problem) for x in tensors(3, problem))
    tiles = problem["query_tiles"]
    options = dict(query_tiles=tiles, text_lengths=lengths)
    if tiling.num_tiles % tiles:
        with pytest.raises(ValueError, match=f"query_tiles={tiles} does not divide the"):
            vsa_mask(q, k, tiling, top_k=rule, **options)
        return
    mask = vsa_mask(q, k, tiling, top_k=rule, **options)
    found = flex_attention(q, k, v, block_mask=mask)
    wanted = vsa_attention(q, k, v, tiling, top_k=rule, **options)
    wide = [x.double() for x in (q, k, v)]
    exact = flex_attention(*wide, block_mask=mask)
    assert_accurate([found], [[wanted]], [exact])

    kept = prune_queries(q, tiling, keep=keep, text_lengths=lengths)
    of_video = kept.mask[:, :, : tiling.video_rows]
    assert torch.equal(of_video.sum(-1), (kept.index >= 0).sum((-1, -2)))
    mask = bsa_mask(kept, k, tiling, kv=rule, **options)
    rows = flex_attention(kept.q, k, v, block_mask=mask)
    wanted = bsa_attention(q, k, v, tiling, kv=rule, keep=keep, **options)
    exact = bsa_attention(*wide, tiling, kv=rule, keep=keep, **options)
    assert_accurate([restore_queries(rows, kept, tiling)], [[wanted]], [exact])
    for made in (mask, vsa_mask(q, k, tiling, top_k=rule, **options)):
        blocks = made.to_dense().bool()
        rows, columns = (x // size for x, size in zip(made.seq_lengths, made.BLOCK_SIZE))
        b, h, i, j = (torch.arange(n) for n in (len(blocks), blocks.shape[1], *made.seq_lengths))
        pairs = made.mask_mod(
            b[:, None, None, None], h[:, None, None], i[:, None], j
        )  # [B, H, Lq, Lk]
        seen = torch.zeros_like(blocks)
        index = i // made.BLOCK_SIZE[0], j // made.BLOCK_SIZE[1]
        for r in range(blocks.shape[2]):
            inside = pairs[:, :, index[0] == r].any(-2)
            seen[:, :, r] = inside.unflatten(-1, (-1, tiling.rows)).any(-1)
        assert torch.equal(blocks, seen), (rows, columns)


def test_layers_pass_lengths_on():
    tiling = VideoTiling((4, 8, 8), text=20)
    torch.manual_seed(0)
    x = torch.randn(2, tiling.padded_tokens, 32)
    q, k, v = torch.randn(3, 2, 2, tiling.padded_tokens, 16)
    lengths = torch.tensor([3, 20])
    for layer in (VSA(32, 2, 2), BSA(2, window=(2, 2, 2)), VSA(32, 2, None), BSA(None)):
        out = layer(x, q, k, v, tiling, text_lengths=lengths)
        ends = tiling.video_rows + lengths
        assert not out[0, :, ends[0] :].any() and out[1, :, ends[1] - 1].any()
        changed = [y.clone() for y in (k, v)]
        for y in changed:
            y[0, :, ends[0] :] = torch.nan
        assert torch.equal(layer(x, q, *changed, tiling, text_lengths=lengths), out)


def test_lengths_that_cannot_be_are_refused():
    tiling = VideoTiling((4, 8, 8), text=20)
    q = torch.randn(2, 1, tiling.padded_tokens, 16)
    for lengths, words in [
        (torch.tensor([3, 21]), "text_lengths are 3 to 21, but the tiling has text=20"),
        (torch.tensor([3]), r"give an int for each sequence of the batch, \[2\]"),
        (torch.tensor([3.0, 4.0]), "text_lengths is torch.float32"),
    ]:
        with pytest.raises(ValueError, match=words):
            vsa_attention(q, q, q, tiling, top_k=2, text_lengths=lengths)
        with pytest.raises(ValueError, match=words):
            bsa_attention(q, q, q, tiling, kv=2, text_lengths=lengths)
    with pytest.raises(ValueError, match="the tiling has no text"):
        x = q[:, :, : tiling.video_rows]
        vsa_attention(x, x, x, tiling.of_video, top_k=2, text_lengths=torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="text=-1 must be an int of at least 0"):
        VideoTiling((4, 8, 8), text=-1)


@settings(max_examples=8)
@given(problems())
def test_kernels_that_walk_the_lists_are_told_the_same(problem):
    tiling, lengths = problem["tiling"], problem["text_lengths"]
    q, k, _ = (tiling.to_tiles(x) for x in tensors(3, problem))
    mask = vsa_mask(q, k, tiling, top_k=problem["rule"], text_lengths=lengths)
    b, h, i = (torch.arange(n)[:, None] for n in (q.shape[0], q.shape[1], q.shape[2]))
    place = b[:, None, None], h[:, None], i, torch.arange(tiling.padded_tokens)
    listed = mask.to_dense().bool()
    for axis, size in zip((2, 3), mask.BLOCK_SIZE):
        listed = listed.repeat_interleave(size, axis)
    inner = mask.within_tiles()
    allowed = inner.mask_mod(*place) & listed[:, :, : q.shape[2]]
    assert torch.equal(allowed.expand(*q.shape[:3], -1), mask.mask_mod(*place).expand_as(allowed))


def test_flops_are_those_of_the_pairs_that_kernels_multiply():
    tiling = VideoTiling((4, 8, 8), text=70)  # 4 tiles and 2 of text, 64 rows each
    pairs = 4 * 64 * (3 + 2) * 64 + 2 * 64 * 6 * 64
    given = dict(tiling=tiling, top_k=3)
    assert attention_flops(0, 2, 16, **given) == 4 * (pairs + 4**2) * 32
    pairs = 4 * 32 * (3 + 2) * 64 + 2 * 64 * 6 * 64
    assert attention_flops(0, 2, 16, **given, q_rows=32) == (4 * pairs + 2 * 4**2) * 32
