"""Rules that unite: a union admits what any of its parts does, and nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import seeds, tilings

from flexsparse import (
    FirstFrames,
    Mass,
    Neighbourhood,
    OwnTile,
    Scaled,
    Threshold,
    TopK,
    VideoTiling,
    bsa_mask,
    prune_queries,
    reference,
    vsa_mask,
)
from flexsparse.bsa import bsa_tile_map
from flexsparse.choice.choose import choose_tiles, of_tiles
from flexsparse.choice.scaled import as_rule
from flexsparse.choice.selection import unpack_bits
from flexsparse.stages.pooling import pool_tiles
from flexsparse.vsa import vsa_tile_map
from train.sparsity.annealing import annealed

odd = st.sampled_from([1, 3, 5])
places = st.builds(lambda *x: Neighbourhood(x), *[odd | st.none()] * 3)
places |= st.builds(FirstFrames, st.integers(1, 9)) | st.just(OwnTile())
rules = st.sampled_from([TopK(1), Threshold(1.5), Mass(0.6), Scaled(0.7)])
unions = st.lists(places | rules, min_size=1, max_size=3)
together = st.sampled_from([1, 2, 3])


def united(parts):
    union, *others = parts
    for part in others:
        union = union | part
    return union


def draw(tiling, seed, dim=16):
    generator = torch.Generator().manual_seed(seed)
    shape = 1, 2, tiling.tokens, dim
    return [tiling.to_tiles(torch.randn(shape, generator=generator)) for _ in range(2)]


def tile_map(rule, tiling, seed, query_tiles=1):
    options = dict(top_k=rule, query_tiles=min(query_tiles, tiling.num_tiles))
    return vsa_tile_map(*draw(tiling, seed), tiling, **options)


@given(tilings(), unions, seeds, together)
def test_a_union_admits_what_any_part_admits(tiling, parts, seed, query_tiles):
    union = united(parts)
    found = tile_map(union, tiling, seed, query_tiles)
    each = [tile_map(part, tiling, seed, query_tiles) for part in parts]
    assert torch.equal(found, torch.stack(each).any(0))
    assert torch.equal(found, tile_map(united(parts[::-1]), tiling, seed, query_tiles))
    assert union | union == union == union | parts[0]


@given(tilings(), st.tuples(odd, odd, odd), st.integers(0, 9), seeds)
def test_places_are_those_of_the_oracle(tiling, window, frames, seed):
    rule = Neighbourhood(window)
    asked = rule | FirstFrames(frames) if frames else rule
    near = reference.neighbourhood(tiling.video, tiling.tile, window, frames)
    assert torch.equal(tile_map(asked, tiling, seed), near.expand(1, 2, -1, -1))


@given(tilings(), seeds)
def test_the_neighbourhood_of_the_whole_grid_is_dense(tiling, seed):
    for window in (None, None, None), tuple(2 * size - 1 for size in tiling.grid):
        assert tile_map(Neighbourhood(window), tiling, seed).all()


@given(tilings(), unions, seeds, together)
def test_lists_are_as_wide_as_is_known_beforehand(tiling, parts, seed, query_tiles):
    query_tiles, union = min(query_tiles, tiling.num_tiles), united(parts)
    rule = as_rule(union, tiling)
    least, most = rule.bounds(tiling.num_tiles, query_tiles)
    found = tile_map(union, tiling, seed, query_tiles)
    counts = found.sum(-1)
    assert least <= counts.min() and counts.max() <= most <= tiling.num_tiles
    mask = vsa_mask(*draw(tiling, seed), tiling, top_k=union, query_tiles=query_tiles)
    assert torch.equal(of_tiles(mask.to_dense().bool(), query_tiles), found)


@pytest.mark.parametrize("query_tiles, most", [(1, 27), (2, 36)])
def test_the_lists_of_a_neighbourhood_are_no_wider_than_its_window(query_tiles, most):
    rule = as_rule(Neighbourhood((3, 3, 3)), VideoTiling((20, 24, 32)))
    assert rule.bounds(240, query_tiles)[1] == most


@settings(max_examples=10)
@given(
    tilings(max_side=6),
    places,
    st.sampled_from([TopK(1), Threshold(1.5), Mass(0.6)]),
    seeds,
    together,
)
def test_the_kernel_ors_places_in(tiling, place, rule, seed, query_tiles):
    kernels = pytest.importorskip("flexsparse.kernels.select_tiles")
    query_tiles, n = min(query_tiles, tiling.num_tiles), tiling.num_tiles
    q, k = (pool_tiles(x, tiling) for x in draw(tiling, seed))
    always = as_rule(rule | place, tiling).always(query_tiles, q.device)
    weights = tiling.counts() if query_tiles > 1 else None
    how = *rule.fused(n), *rule.bounds(n), query_tiles
    with_places, alone = (kernels.select_tiles(q, k, weights, *how, x) for x in (always, None))
    assert torch.equal(with_places, alone | always)


def test_bsa_and_its_mask_take_unions():
    tiling = VideoTiling((8, 9, 10))
    q, k = draw(tiling, 0)
    kept = prune_queries(q, tiling, keep=0.5)
    union = Mass(0.3) | Neighbourhood((1, 3, 1)) | FirstFrames()
    found = bsa_tile_map(kept, k, tiling, kv=union)
    parts = [bsa_tile_map(kept, k, tiling, kv=part) for part in union.parts]
    assert torch.equal(found, torch.stack(parts).any(0)) and not found.all()
    assert torch.equal(bsa_mask(kept, k, tiling, kv=union).to_dense().bool(), found)


@pytest.mark.parametrize("window, share", [((11, 3, 3), 0.9), ((3, 3, 1), 0.5), ((1, 1, 1), 0.2)])
def test_nabla_is_a_mass_and_a_neighbourhood(window, share):
    """Kandinsky 5's mask, which its models were trained with, as diffusers makes it."""
    kandinsky = pytest.importorskip("diffusers.models.transformers.transformer_kandinsky")
    tiling = VideoTiling((5, 24, 16), (1, 8, 8))
    near = reference.neighbourhood(tiling.video, tiling.tile, window)
    for seed in range(24):
        q, k = (3 * x for x in draw(tiling, seed))
        given = q.transpose(1, 2), k.transpose(1, 2), near[None, None]
        theirs = kandinsky.nablaT_v2(*given, thr=share).to_dense().bool()
        ours = vsa_tile_map(q, k, tiling, top_k=Mass(share) | Neighbourhood(window))
        assert torch.equal(ours, theirs), seed


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Neighbourhood((2, 3, 3)), "three odd numbers of tiles"),
        (lambda: Neighbourhood((3, 3)), "three odd numbers of tiles"),
        (lambda: FirstFrames(0), "frames=0 must be an int of at least 1"),
        (lambda: as_rule(TopK(1) | OwnTile(), 8), "is of places in a video: give its tiling"),
        (lambda: as_rule(TopK(9) | OwnTile(), VideoTiling((4, 4, 8))), "asks for 9 tiles of 2"),
    ],
)
def test_bad_places_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_only_rules_and_places_unite():
    with pytest.raises(TypeError):
        TopK(1) | 3


def test_a_union_compiles_and_takes_part_in_schedules():
    tiling = VideoTiling((4, 8, 12))
    pooled = [pool_tiles(x, tiling) for x in draw(tiling, 0)]
    tiles = torch.tensor(0)
    rule = annealed(as_rule(TopK(2) | Neighbourhood((1, 1, 3)), tiling), tiles, 5)
    choose = torch.compile(lambda q, k: choose_tiles(q, k, rule), backend="eager", fullgraph=True)
    for number in (1, 3, 5):
        tiles.fill_(number)
        found = unpack_bits(choose(*pooled), tiling.num_tiles)
        due = tile_map(TopK(number) | Neighbourhood((1, 1, 3)), tiling, 0)
        assert torch.equal(found, due)
