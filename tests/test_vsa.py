"""VSA against the oracle, and the laws that need no oracle."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import EPS, assert_accurate, poison, problems, tensors, with_fused

from flexsparse import VideoTiling, flex_attention, reference, vsa_attention, vsa_mask
from flexsparse.vsa import vsa_tile_map


def ours(problem, q, k, v, gate_coarse=None, gate_fine=None):
    """vsa_attention from raster tensors to a raster tensor."""
    tiling = problem["tiling"]
    q, k, v = map(tiling.to_tiles, (q, k, v))
    gates = [None if g is None else tiling.to_tiles(g) for g in (gate_coarse, gate_fine)]
    options = dict(zip(("gate_coarse", "gate_fine"), gates)) | chosen_by(problem)
    return tiling.from_tiles(vsa_attention(q, k, v, tiling, **options))


def chosen_by(problem):
    """How tiles are chosen."""
    return dict(top_k=problem["top_k"], query_tiles=problem.get("query_tiles", 1))


def results(compute, inputs, seed):
    """The output and the gradients of all inputs for one drawn output gradient."""
    out = compute(*inputs)
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    return out, *torch.autograd.grad(out, inputs, grad.to(out.dtype))


def check_against_oracle(problem, inputs):
    tiling, seed, dtype = problem["tiling"], problem["seed"], inputs[0].dtype
    # the oracle is given our choice, made in the tested dtype
    chosen = vsa_tile_map(*map(tiling.to_tiles, inputs[:2]), tiling, **chosen_by(problem))

    def oracle(dtype, q, k, v, *gates):
        gates = dict(zip(("gate_coarse", "gate_fine"), gates))
        choice = dict(top_k=0, tile_map=chosen, dtype=dtype)
        return reference.vsa(q, k, v, tiling.video, tiling.tile, **choice, **gates)

    found = results(lambda *x: ours(problem, *x), inputs, seed)
    arguments = partial(oracle, dtype), inputs, seed
    plain = [results(*arguments), with_fused(results, *arguments)]
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    assert_accurate(found, plain, results(partial(oracle, torch.float64), doubles, seed), inputs)


@settings(max_examples=25)
@given(problems(), st.integers(0, 2), st.sampled_from([1.0, 8.0, 64.0]))
def test_outputs_and_gradients_equal_the_oracle(problem, gates, scale):
    check_against_oracle(problem, tensors(3 + gates, problem, scale))


@settings(max_examples=8)
@given(problems(dims=(16, 64)), st.integers(0, 2))
def test_bf16(problem, gates):
    check_against_oracle(problem, tensors(3 + gates, problem, dtype=torch.bfloat16))


@pytest.mark.parametrize("tile", [(1, 1, 1), (1, 1, 2), (2, 1, 1)])
def test_tiles_of_one_or_two_tokens(tile):
    tiling = VideoTiling((3, 3, 5), tile)
    problem = dict(tiling=tiling, batch=1, heads=2, dim=16, seed=0, top_k=7)
    check_against_oracle(problem, tensors(5, problem))


@settings(max_examples=15)
@given(problems(dims=(16, 32)))
def test_all_tiles_is_dense_attention(problem):
    problem["top_k"] = problem["tiling"].num_tiles
    inputs = tensors(3, problem)
    found = results(lambda *x: ours(problem, *x), inputs, problem["seed"])
    eager = results(F.scaled_dot_product_attention, inputs, problem["seed"])
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    exact = results(F.scaled_dot_product_attention, doubles, problem["seed"])
    assert_accurate(found, [eager], exact, inputs)


@settings(max_examples=20)
@given(problems(dims=(16, 32)))
def test_nan_in_padding_changes_nothing(problem):
    tiling, choice = problem["tiling"], chosen_by(problem)
    raster = tensors(6, problem)
    grad = tiling.to_tiles(raster.pop().detach())
    clean = [tiling.to_tiles(x.detach()).requires_grad_() for x in raster]
    poisoned = [poison(x, tiling).detach().requires_grad_() for x in clean]

    def gated(q, k, v, gate_coarse, gate_fine):
        gates = dict(gate_coarse=gate_coarse, gate_fine=gate_fine)
        return vsa_attention(q, k, v, tiling, **choice, **gates)

    def masked(q, k, v, *_):
        return flex_attention(q, k, v, block_mask=vsa_mask(q, k, tiling, **choice))

    for compute, count in ((gated, 5), (masked, 3)):
        expected, out = compute(*clean), compute(*poisoned)
        assert torch.equal(out, expected)
        wanted = torch.autograd.grad(expected, clean[:count], grad)
        found = torch.autograd.grad(out, poisoned[:count], poison(grad, tiling))
        for name, x, y in zip("q k v gate_coarse gate_fine".split(), found, wanted):
            assert torch.equal(tiling.from_tiles(x), tiling.from_tiles(y)), name


@settings(max_examples=15)
@given(problems(dims=(16,)))
def test_an_unselected_tile_gets_no_gradient_from_the_fine_stage(problem):
    tiling = problem["tiling"]
    inputs = [tiling.to_tiles(x.detach()).requires_grad_() for x in tensors(3, problem)]
    chosen = vsa_tile_map(*inputs[:2], tiling, **chosen_by(problem))
    out = vsa_attention(*inputs, tiling, **chosen_by(problem))
    _, dk, dv = torch.autograd.grad(out.square().sum(), inputs)
    selected = chosen.any(-2)
    for grad in (dk, dv):
        by_tile = grad.unflatten(2, (tiling.num_tiles, tiling.rows)).abs().sum((-1, -2))
        assert not by_tile[~selected].any()
    assert dv.unflatten(2, (tiling.num_tiles, tiling.rows)).abs().sum((-1, -2))[selected].all()


@settings(max_examples=10)
@given(problems(dims=(16,)))
def test_batch_and_head_permutations_commute(problem):
    def turn(x):
        return x.flip(0).roll(1, 1)

    inputs = tensors(5, problem)
    turned = [turn(x) for x in inputs]
    exact = ours(problem, *[x.double() for x in turned])
    assert_accurate([turn(ours(problem, *inputs))], [[ours(problem, *turned)]], [exact])


@settings(max_examples=30)
@given(problems(dims=(16,)))
def test_query_tiles_of_a_block_choose_together_by_their_mean_query(problem):
    tiling, size = problem["tiling"], problem["query_tiles"]
    q, k = (x.detach() for x in tensors(2, problem))
    chosen = vsa_tile_map(tiling.to_tiles(q), tiling.to_tiles(k), tiling, **chosen_by(problem))
    assert (chosen.sum(-1) == problem["top_k"]).all()
    of_token = reference.tile_of_token(tiling.video, tiling.tile)
    keys = reference.pool(k.double(), tiling.video, tiling.tile)
    for first in range(0, tiling.num_tiles, size):
        block = slice(first, first + size)
        assert (chosen[..., block, :] == chosen[..., first : first + 1, :]).all()
        together = (of_token >= first) & (of_token < first + size)
        scores = q.double()[..., together, :].mean(-2, keepdim=True) @ keys.mT
        rounded = q[..., together, :].mean(-2, keepdim=True) @ keys.float().mT
        slack = 4 * ((rounded - scores).abs().amax() + EPS * scores.abs().amax())
        mine = chosen[..., first : first + 1, :]
        worst = scores.masked_fill(~mine, torch.inf).amin(-1)
        best_left = scores.masked_fill(mine, -torch.inf).amax(-1)
        assert (worst >= best_left - slack).all()
    exact = [x.detach().double() for x in (q, k)]
    shape = tiling.video, tiling.tile
    theirs = reference.pooled_over_blocks(reference.scores(*exact, *shape), *shape, size)
    scores = reference.pool(exact[0], *shape) @ keys.mT / problem["dim"] ** 0.5
    tokens = torch.bincount(of_token).double()
    for tile in range(tiling.num_tiles):
        block = torch.arange(tiling.num_tiles) // size == tile // size
        mean = (scores[..., block, :] * tokens[block, None]).sum(-2) / tokens[block].sum()
        torch.testing.assert_close(theirs[..., tile, :], mean)


def test_a_nearly_empty_tile_has_little_say_in_a_choice_made_together():
    """A full tile of 16 tokens wants key tile 0 by 1, a tile of 4 wants key tile 1 by 2: the mean
    over tokens, (16 - 8) / 20, is for tile 0, the mean over tiles, (1 - 2) / 2, for tile 1."""
    tiling = VideoTiling((2, 2, 5), (2, 2, 4), rows=16)
    assert tiling.counts().tolist() == [16, 4]
    q, k = torch.zeros(2, 1, 1, tiling.tokens, 16)
    first = reference.tile_of_token(tiling.video, tiling.tile) == 0
    k[..., first, 0] = 1
    k[..., ~first, 0] = -1
    q[..., first, 0] = 1
    q[..., ~first, 0] = -2
    tiled = tiling.to_tiles(q), tiling.to_tiles(k)
    alone, together = (vsa_tile_map(*tiled, tiling, top_k=1, query_tiles=n) for n in (1, 2))
    assert alone[0, 0].tolist() == [[True, False], [False, True]]
    assert together[0, 0].tolist() == [[True, False], [True, False]]


@pytest.mark.parametrize("top_k", [2, None])
@pytest.mark.parametrize("text", [0, 5])
def test_grouped_heads_are_repeated_ones(top_k, text):
    tiling = VideoTiling((3, 5, 4), tile=(2, 2, 2), text=text)
    generator = torch.Generator().manual_seed(0)
    rows = tiling.padded_tokens
    shapes = [(2, heads, rows, 16) for heads in (4, 2, 2, 4, 4)]  # q, k, v and gates
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    options = dict(top_k=top_k, text_lengths=torch.tensor([5, 3]) if text else None)

    def grouped(q, k, v, coarse, fine):
        gates = dict(gate_coarse=coarse, gate_fine=fine)
        return vsa_attention(q, k, v, tiling, enable_gqa=True, **gates, **options)

    def repeated(q, k, v, *gates):
        return grouped(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), *gates)

    found = results(grouped, [x.requires_grad_() for x in drawn], 0)
    plain = results(repeated, drawn, 0)
    exact = results(repeated, [x.detach().double().requires_grad_() for x in drawn], 0)
    assert_accurate(found, [plain], exact, drawn)
    if not text:
        q, k = drawn[:2]
        maps = [vsa_tile_map(q, x, tiling, top_k=2) for x in (k, k.repeat_interleave(2, 1))]
        assert torch.equal(*maps) and not torch.equal(maps[0][:, 0], maps[0][:, 2])
        masks = [vsa_mask(q, x, tiling, top_k=2) for x in (k, k.repeat_interleave(2, 1))]
        assert torch.equal(*(mask.to_dense() for mask in masks))


def test_one_block_of_all_query_tiles_is_one_choice_for_all():
    tiling = VideoTiling((4, 8, 12), (4, 4, 4))
    problem = dict(tiling=tiling, batch=2, heads=2, dim=16, seed=0, top_k=2, query_tiles=6)
    check_against_oracle(problem, tensors(5, problem))
    q = tiling.to_tiles(torch.randn(1, 1, tiling.tokens, 16))
    mask = vsa_mask(q, q, tiling, top_k=2, query_tiles=6)
    assert mask.BLOCK_SIZE == (384, 64) and mask.full_kv_indices.shape == (1, 1, 1, 2)


def test_a_choice_follows_the_keys_that_matter():
    tiling = VideoTiling((4, 8, 8), (4, 4, 4))
    q, k = torch.zeros(2, 1, 1, tiling.tokens, 16)
    of_token = reference.tile_of_token(tiling.video, tiling.tile)
    for tile in range(4):  # queries of tile i look for the mark that tile 3 - i carries
        q[..., of_token == tile, tile] = 1
        k[..., of_token == 3 - tile, tile] = 1
    chosen = vsa_tile_map(tiling.to_tiles(q), tiling.to_tiles(k), tiling, top_k=1)
    assert torch.equal(chosen[0, 0], torch.eye(4, dtype=torch.bool).flip(0))


def test_bad_input_is_one_clear_line():
    tiling = VideoTiling((3, 5, 5), (2, 4, 4))
    good = torch.randn(1, 2, tiling.padded_tokens, 16)
    raster = torch.randn(1, 2, tiling.tokens, 16)
    with pytest.raises(ValueError, match=r"^k has 75 rows.*call tiling.to_tiles\(k\) first$"):
        vsa_attention(good, raster, good, tiling, top_k=2)
    with pytest.raises(ValueError, match=r"^gate_fine has 75 rows"):
        vsa_attention(good, good, good, tiling, top_k=2, gate_fine=raster)
    for top_k in (0, 9, -1):
        with pytest.raises(ValueError, match=rf"^top_k={top_k} must be an int in 1..8"):
            vsa_mask(good, good, tiling, top_k=top_k)
    for tiles in (0, 9, 2.0, True):
        with pytest.raises(ValueError, match=rf"^query_tiles={tiles!r} must be an int in 1..8"):
            vsa_attention(good, good, good, tiling, top_k=2, query_tiles=tiles)
    for top_k in (2.0, "2"):
        with pytest.raises(ValueError, match=rf"^top_k={top_k!r} must be an int in 1..8"):
            vsa_attention(good, good, good, tiling, top_k=top_k)
    with pytest.raises(ValueError, match="share device and a floating dtype.*cpu/torch.float64"):
        vsa_attention(good, good, good.double(), tiling, top_k=2, gate_coarse=good)
    for mask in (vsa_mask, vsa_tile_map):
        with pytest.raises(ValueError, match="share device and a floating dtype"):
            mask(good.double(), good, tiling, top_k=2)
    for gate in (good.double(), good[0], good[:, :1], good.repeat(2, 1, 1, 1)):
        with pytest.raises(ValueError, match=r"^gate_fine is \(.*make them alike$"):
            vsa_attention(good, good, good, tiling, top_k=2, gate_fine=gate)
    with pytest.raises(ValueError, match=r"q has 2 heads, k 1: make them equal"):
        vsa_attention(good, good[:, :1], good[:, :1], tiling, top_k=2)
    with pytest.raises(ValueError, match=r"q has 1 heads, k 2: make them equal"):
        vsa_attention(good[:, :1], good, good, tiling, top_k=2, enable_gqa=True)
    with pytest.raises(ValueError, match="q has batch 2, k and v 1: expand"):
        vsa_attention(good.repeat(2, 1, 1, 1), good, good, tiling, top_k=2)
    with pytest.raises(ValueError, match=r"must be \[batch, heads, tokens, dim\]"):
        vsa_mask(good[0], good[0], tiling, top_k=2)


def test_autocast_rounds_neither_scores_nor_the_coarse_output():
    tiling = VideoTiling((8, 16, 16), (4, 4, 4))
    problem = dict(tiling=tiling, batch=1, heads=2, dim=64, seed=0)
    inputs = [tiling.to_tiles(x.detach()) for x in tensors(4, problem)]
    expected = vsa_attention(*inputs[:3], tiling, top_k=5, gate_coarse=inputs[3])
    chosen = vsa_tile_map(*inputs[:2], tiling, top_k=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = vsa_attention(*inputs[:3], tiling, top_k=5, gate_coarse=inputs[3])
        assert torch.equal(vsa_tile_map(*inputs[:2], tiling, top_k=5), chosen)
    assert torch.equal(out, expected)
