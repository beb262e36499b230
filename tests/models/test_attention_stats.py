"""What is said of each layer's attention is what it did."""

import dataclasses
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from laws import seeds
from small_dit import draw_batch, small_model

from flexsparse import Threshold, TopK, VideoTiling, prune_queries
from flexsparse.bsa import bsa_tile_map
from flexsparse.flops import attention_flops
from flexsparse.reference import tile_of_token
from flexsparse.vsa import vsa_tile_map
from models.attention import BSA, VSA, Dense
from models.wan import debug
from train.plan.cost import attention_cost
from train.sparsity.attention_stats import attention_stats, watched_slots

PRUNING = BSA(kv=Threshold(2.0), window=(1, 2, 2), tile=(2, 4, 4))
videos = st.tuples(st.integers(2, 5), st.integers(4, 9), st.integers(4, 9))


def calls_of(model, batch):
    calls = []
    with watched_slots(model, lambda slot, given: calls.append(given)), torch.no_grad():
        model(*batch)
    return calls


@settings(max_examples=4)
@given(videos, seeds, st.sampled_from([0.3, 0.5, 1.0]))
def test_bsa_is_counted_as_it_chose(video, seed, keep):
    slot = dataclasses.replace(PRUNING, keep=keep)
    model = small_model(video, slot, seed)
    batch = draw_batch(model.config, seed=seed)
    n, rows = model.tiling.num_tiles, model.tiling.rows
    for stats, call in zip(attention_stats(model, *batch), calls_of(model, batch), strict=True):
        _, q, k, _, tiling = call
        queries = prune_queries(q, tiling, keep=keep, window=slot.window)
        tile_map = bsa_tile_map(queries, k, tiling, kv=slot.kv)
        assert torch.equal(stats.admitted, tile_map.sum(-1))
        tokens = tiling.layout().gather(-1, queries.index[0, 0].clamp(min=0).long())
        tokens = tokens[queries.index[0, 0] >= 0]
        assert torch.equal(stats.kept[0, 0].flatten().nonzero().flatten(), tokens.sort().values)
        pairs = tile_map.sum().item() * queries.q_rows * rows
        assert stats.sparsity == pytest.approx(1 - pairs / (2 * 2 * (n * rows) ** 2))
        assert stats.flops == pytest.approx(14 * pairs / 2 * 16 + 2 * n**2 * 32, abs=14 * 32 * rows)
        assert stats.share_kept == pytest.approx(len(tokens) / math.prod(video))


@settings(max_examples=4)
@given(videos, seeds, st.integers(1, 4))
def test_a_fixed_count_costs_what_is_known_beforehand(video, seed, count):
    tile = (2, 4, 4)
    assume(count <= VideoTiling(video, tile).num_tiles)
    fixed = dict(min_tiles=count, max_tiles=count)
    for slot in (
        VSA(top_k=1, tile=tile),
        BSA(kv=TopK(1), window=(1, 2, 2), tile=tile),
        BSA(kv=Threshold(count, **fixed), keep=1, window=None, tile=tile),
        Dense(),
    ):
        model = small_model(video, slot, seed)
        layers = attention_stats(model, *draw_batch(model.config, seed=seed))
        cost = attention_cost(model, model.top_k)
        assert sum(layer.flops for layer in layers) == cost["attention__flops_per_clip"]
        assert {layer.sparsity for layer in layers} == {cost["attention__sparsity"]}


def test_vsa_keeps_every_query_and_dense_attention_chooses_nothing():
    model = small_model((3, 6, 10), VSA(top_k=3, tile=(2, 4, 4)))
    batch = draw_batch(model.config)
    for stats, call in zip(attention_stats(model, *batch), calls_of(model, batch), strict=True):
        tile_map = vsa_tile_map(*call[1:3], call[-1], top_k=3)
        assert torch.equal(stats.admitted, tile_map.sum(-1)) and (stats.admitted == 3).all()
        assert stats.kept.all() and stats.share_kept == 1 and stats.mean_admitted == 3
        assert stats.kept.shape == (2, 2, 3, 6, 10)
        of_token = tile_of_token((3, 6, 10), (2, 4, 4))
        own = of_token[(1 * 2 + 1) * 3 + 1 == of_token][0]  # of 2 x 2 x 3 tiles the middle one
        attended = tile_map[:, :, own][..., of_token]
        expected = torch.where(of_token == own, 2, attended.byte()).unflatten(2, (3, 6, 10))
        assert torch.equal(stats.chosen, expected)
    model = small_model((3, 6, 10), Dense())
    for stats in attention_stats(model, *draw_batch(model.config)):
        assert stats.admitted is stats.kept is stats.mean_admitted is stats.chosen is None
        assert stats.sparsity == 0 and stats.flops == attention_flops(180, 2, 16, backward=True)


def test_slots_that_say_nothing_and_blocks_without_a_slot_are_left_out():
    model = small_model((3, 6, 10), VSA(top_k=3, tile=(2, 4, 4)))
    batch = draw_batch(model.config)
    attention = model.layers["0"].self_attention

    class Silent(torch.nn.Module):
        def forward(self, x, q, k, v, tiling):
            return v

    attention.slot = Silent()
    assert len(attention_stats(model, *batch)) == 1
    model.layers["0"], model.layers["1"] = torch.nn.Identity(), torch.nn.Identity()
    assert attention_stats(model) == [], "nor is the model called"


def test_compiled_blocks_are_asked_too_and_stay_compiled():
    torch._dynamo.reset()  # what other tests compiled blocks for makes this size a symbol
    model = small_model((2, 4, 8), PRUNING).eval()
    batch = draw_batch(model.config)
    eager = attention_stats(model, *batch)
    compiled = []
    for block in model.layers.values():
        block.compile(fullgraph=True, backend="eager")
        compiled.append(block._compiled_call_impl)
    with torch.no_grad():
        model(*batch)  # compiled without hooks
    layers = attention_stats(model, *batch)
    assert len(layers) == len(eager) == 2
    assert all(torch.equal(a.admitted, b.admitted) for a, b in zip(layers, eager))
    assert [block._compiled_call_impl for block in model.layers.values()] == compiled
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_wans_layers_are_counted_as_well():
    model = debug(attention=VSA(top_k=2, tile=(2, 3, 4))).build()
    x, text = torch.randn(2, 16, *model.config.video), torch.randn(2, 512, 32)
    stats = attention_stats(model, x, torch.tensor([0.3, 0.7]), text)
    assert len(stats) == model.config.layers
    assert all((one.admitted == 2).all() and one.kept.shape[2:] == model.grid for one in stats)
