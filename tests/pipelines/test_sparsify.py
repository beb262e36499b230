"""diffusers' models made sparse: dense as the limit, the oracle in between, and back again."""

import math
from unittest import mock

import diffusers
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import EPS, assert_accurate, seeds
from small_models import SMALL, run
from torch import nn

from flexsparse import Mass, VideoTiling, reference
from flexsparse.diffusers import BSA, VSA, Family, register, restore, sparsify
from flexsparse.selfcheck.accuracy import recomputed_attention
from flexsparse.vsa import vsa_tile_map

grids = st.tuples(st.integers(1, 4), st.integers(2, 6), st.integers(2, 7))
diffusers.utils.logging.set_verbosity_error()  # it says of every cast which modules it keeps
families = pytest.mark.parametrize("name", SMALL)
FEW = 64
EVERYTHING = [VSA(sparsity=0.0), VSA(top_k=10**6, tile=(2, 3, 4)), BSA(keep=1.0, kv=Mass(1))]


def with_gradients(model, batch):
    """Output and the gradients of all parameters that dense attention has, too."""
    model.zero_grad()
    out = run(model, batch)
    out.square().mean().backward()
    own = [p for n, p in model.named_parameters() if ".slot." not in n and p.grad is not None]
    return [out.detach(), *(p.grad.clone() for p in own)]


def recomputed():
    """The library's ``recomputed_attention`` for PyTorch's, in a model of diffusers'."""

    def attend(query, key, value, attn_mask=None, enable_gqa=False, **options):
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool) if attn_mask is None else attn_mask
        mask = mask if mask.dtype == torch.bool else mask > -1  # what is added: 0, or -10,000
        sees = mask.any(-1, keepdim=True)
        return recomputed_attention(query, key, value, mask | ~sees) * sees

    return mock.patch("torch.nn.functional.scaled_dot_product_attention", attend)


def joined(results, exact):
    """bf16 results of few numbers as one, each brought to about 1 by a power of two: the error of
    sixteen numbers is small by luck at times, in plain PyTorch as in ours. (fp32 holds each.)"""
    few = [number for number, x in enumerate(exact) if x.numel() <= FEW]
    least = 2.0**-8 * max(x.square().mean().sqrt() for x in exact)
    sizes = [exact[n].square().mean().sqrt().clamp_min(least).log2().round() for n in few]
    together = [(results[n] / 2.0**size).flatten() for n, size in zip(few, sizes, strict=True)]
    return [*(x for n, x in enumerate(results) if n not in few), torch.cat(together)]


@families
@settings(max_examples=4)
@given(grids, seeds, st.sampled_from(EVERYTHING), st.sampled_from([torch.float32, torch.bfloat16]))
def test_with_all_tiles_a_model_is_the_dense_one(name, grid, seed, method, dtype):
    small, batch = SMALL[name], SMALL[name].batch(grid, seed)
    model = small.model(seed, dtype)
    plain = [with_gradients(model, batch)]
    with recomputed():  # parameters of few numbers come out well by luck in one of two ways
        plain.append(with_gradients(model, batch))
    sparsify(model, method)
    found = with_gradients(model, batch)
    restore(model)
    exact = with_gradients(model.double(), batch)
    if dtype == torch.bfloat16:
        found, *plain = (joined(results, exact) for results in (found, *plain))
        exact = joined(exact, exact)
    assert_accurate(found, plain, exact)


def oracle(method, grid, q, k, v, mask, before):
    """In place of the attention that diffusers' processors call with raster q, k and v, of which
    the first `before` rows are not the video's."""
    video = math.prod(grid)
    order = torch.arange(q.shape[-2]).split([before, video, q.shape[-2] - before - video])
    order = torch.cat((order[1], order[0], order[2]))
    q, k, v = (x[..., order, :] for x in (q, k, v))
    text = q.shape[-2] - video
    tiling = VideoTiling(grid, method.tile, text=text)
    rule = method.build(32, 2, None).kv_rule
    options = dict(top_k=rule, query_tiles=method.query_tiles)
    chosen = vsa_tile_map(tiling.to_tiles(q), tiling.to_tiles(k), tiling, **options)
    lengths = None if mask is None else mask[:, 0, 0].sum(-1) - video
    given = dict(top_k=0, tile_map=chosen, text_lengths=lengths, dtype=q.dtype)
    return reference.vsa(q, k, v, grid, tiling.tile, **given)[..., order.argsort(), :]


def patched(name, method, grid):
    """diffusers' own model with another self-attention over the video."""
    text, before = SMALL[name].beside(grid)
    video, dense = math.prod(grid), F.scaled_dot_product_attention

    def attend(query, key, value, attn_mask=None, enable_gqa=False, **options):
        rows, keys = query.shape[-2], key.shape[-2]
        of_one = name == "mochi" and query.shape == key.shape and rows >= video  # text of any size
        if not of_one and keys != video + text or keys - rows not in (0, before):
            return dense(query, key, value, attn_mask, enable_gqa=enable_gqa, **options)
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        query = F.pad(query, (0, 0, keys - rows, 0))  # text that sees itself alone
        out = oracle(method, grid, query, key, value, attn_mask, before)
        return out[..., keys - rows :, :]

    return mock.patch("torch.nn.functional.scaled_dot_product_attention", attend)


@families
@settings(max_examples=4)
@given(grids.filter(lambda g: g[1] * g[2] > 9), seeds, st.sampled_from([1, 2]))
def test_a_sparse_model_is_diffusers_own_with_the_oracle_inside(name, grid, seed, query_tiles):
    """In fp64, where both choose the same tiles."""
    small, batch = SMALL[name], SMALL[name].batch(grid, seed)
    grid = max(grid[0], small.frames), *grid[1:]
    model = small.model(seed, torch.float64)
    tile = tuple(min(a, b) for a, b in zip((1, 2, 3), grid))
    method = VSA(sparsity=0.6, tile=tile, query_tiles=query_tiles)
    dense = run(model, batch)
    with patched(name, method, grid):
        wanted = run(model, batch)
    sparsify(model, method)
    found = run(model, batch)
    scale = wanted.abs().max()
    # diffusers rotates in fp32, whatever it is given; we rotate text with it, by nothing
    assert (found - wanted).abs().max() <= EPS * scale
    assert (dense - wanted).abs().max() > 1000 * EPS * scale


@families
def test_restore_leaves_the_model_as_it_was(name):
    small, batch = SMALL[name], SMALL[name].batch((2, 4, 5), 0)
    model = small.model(0)
    before, weights = run(model, batch), {n: x.clone() for n, x in model.state_dict().items()}
    processors = {n: m.processor for n, m in model.named_modules() if hasattr(m, "processor")}
    for method in (VSA(sparsity=0.5), BSA(keep=0.5)):
        sparsify(model, method)
        assert not torch.equal(run(model, batch), before)
    restore(model)
    assert torch.equal(run(model, batch), before)
    after = model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[n], x) for n, x in weights.items())
    again = {n: m.processor for n, m in model.named_modules() if hasattr(m, "processor")}
    assert all(again[n] is p for n, p in processors.items())
    assert not model._forward_pre_hooks
    with pytest.raises(ValueError, match="is not sparse: nothing to restore"):
        restore(model)


@families
def test_without_gates_there_are_no_new_parameters(name):
    small, batch = SMALL[name], SMALL[name].batch((2, 4, 5), 0)
    model, gated = small.model(0, torch.float64), small.model(0, torch.float64)
    weights = model.state_dict().keys()
    sparsify(model, VSA(sparsity=0.5, gates=False))
    sparsify(gated, VSA(sparsity=0.5))
    assert model.state_dict().keys() == weights
    wanted = run(gated, batch)  # whose gates are closed
    assert (run(model, batch) - wanted).abs().max() <= EPS * wanted.abs().max()


def test_each_call_has_its_own_grid():
    """As a model has that was sparsified for that grid alone."""
    small = SMALL["wan"]
    model = small.model(0)
    sparsify(model, VSA(top_k=4, tile=(2, 2, 2)))
    for grid in ((2, 4, 5), (3, 6, 4), (1, 2, 2)):  # the last has fewer than 4 tiles
        fresh = small.model(0)
        tiles = VideoTiling(grid, (2, 2, 2)).num_tiles
        sparsify(fresh, VSA(top_k=min(4, tiles), tile=(2, 2, 2)))
        assert torch.equal(run(model, small.batch(grid, 1)), run(fresh, small.batch(grid, 1)))


def test_what_cannot_be_sparsified_is_named():
    with pytest.raises(ValueError, match="Linear is not a model that can be sparsified; known are"):
        sparsify(nn.Linear(2, 2), VSA())
    small = SMALL["ltx"]
    model = small.model(0)
    sparsify(model, VSA(sparsity=0.5))
    batch = small.batch((2, 4, 5), 0)
    sizes = "num_frames", "height", "width"
    as_pipelines_with_conditions = {n: x for n, x in batch.items() if n not in sizes}
    as_pipelines_with_conditions |= dict(video_coords=torch.rand(2, 3, 40))
    with pytest.raises(ValueError, match="LTXConditionPipeline's tokens cannot be tiled"):
        run(model, as_pipelines_with_conditions)
    with pytest.raises(ValueError, match="num_frames, height and width"):
        run(model, {n: x for n, x in batch.items() if n != "height"})
    with pytest.raises(ValueError, match=r"40 tokens of video, but the call's grid \(2, 4, 6\)"):
        run(model, batch | dict(width=6))
    model = SMALL["wan"].model(0)
    sparsify(model, VSA())
    with pytest.raises(ValueError, match="ran by itself"):
        model.blocks[0].attn1(torch.randn(1, 40, 32))


def test_a_model_of_ones_own_is_added_by_registering_it():
    from flexsparse.diffusers.families import _FAMILIES, layers_of
    from flexsparse.diffusers.wan import WanProcessor, wan_grid

    class MyVideoModel(type(SMALL["wan"].model(0))):
        pass

    model, batch = SMALL["wan"].model(0), SMALL["wan"].batch((2, 4, 5), 0)
    sparsify(model, VSA(sparsity=0.5))
    wanted = run(model, batch)
    restore(model)
    model.__class__ = MyVideoModel
    layers = layers_of("blocks", attention="attn1")
    register(Family("MyVideoModel", wan_grid, layers, WanProcessor))
    sparsify(model, VSA(sparsity=0.5))
    del _FAMILIES["MyVideoModel"]
    assert torch.equal(run(model, batch), wanted)
