"""BSA inside a model: dense attention as its limit, a dense checkpoint as it is, its costs."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import seeds
from small_dit import assert_equals_dense, small_model

from flexsparse import Mass, Threshold, TopK, VideoTiling
from flexsparse.flops import attention_flops
from flexsparse.stages.windows import fit_window
from models.attention import BSA, Dense
from train.plan.cost import attention_cost

videos = st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 9))


@given(videos, seeds)
@settings(max_examples=10)
def test_keeping_everything_a_dense_checkpoint_gives_the_dense_model(video, seed):
    dense = small_model(video, Dense(), seed)
    slot = BSA(kv=Mass(1), keep=1, window=None, tile=(2, 3, 4))
    sparse = replace(dense.config, attention=slot).build()
    sparse.load_state_dict(dense.state_dict())  # strictly: the keys are the same
    assert_equals_dense(sparse, dense, seed)


def test_sparsity_becomes_a_threshold_and_costs_follow():
    model = small_model((4, 8, 8), BSA(sparsity=0.5, window=(2, 2, 2)))
    assert model.top_k == 2 and model.q_rows == 32
    slot = model.layers["0"].self_attention.slot
    assert (slot.kv_rule, slot.keep, slot.window, slot.fill) == (
        Threshold(2),
        0.5,
        (2, 2, 2),
        "nearest",
    )
    other = BSA(kv=3, keep=0.25, window=None, fill="center").build(32, 2, model.tiling)
    assert (other.kv_rule, other.keep, other.window, other.fill) == (TopK(3), 0.25, None, "center")
    cost = attention_cost(model, model.top_k)
    assert cost["attention__sparsity"] == 0.75
    one = attention_flops(256, 2, 16, tiling=model.tiling, top_k=2, q_rows=32, backward=True)
    assert cost["attention__flops_per_clip"] == 2 * one
    assert one == 14 * (4 * 32) * (2 * 64) * 2 * 16 + 2 * 4**2 * 2 * 16


def test_a_short_video_takes_its_whole_side_as_window():
    slot = BSA(tile=(4, 4, 4), window=(2, 2, 2))
    assert fit_window(slot.window, slot.tiling((3, 9, 2))) == (3, 2, 2)
    q = torch.randn(1, 2, slot.tiling((3, 9, 2)).padded_tokens, 16)
    layer = slot.build(32, 2, slot.tiling((3, 9, 2)))
    assert layer(None, q, q, q, slot.tiling((3, 9, 2))).shape == q.shape


@given(st.tuples(*[st.integers(1, 60)] * 3), st.sampled_from([None, (4, 4, 4), (3, 5, 4)]))
@settings(max_examples=30)
def test_the_default_window_fits_any_tile_and_is_2x2x2_where_that_fits(video, tile):
    slot = BSA(tile=tile)
    tiling = slot.tiling(video)
    window = fit_window(slot.window, tiling)
    assert window == tuple(side if side % 2 else 2 for side in tiling.tile)
    try:
        replace(slot, window=(2, 2, 2)).tiling(video)
    except ValueError:
        assert any(side % 2 and side < size for side, size in zip(tiling.tile, video))
    else:
        assert window == fit_window((2, 2, 2), tiling)
    rows = slot.q_rows_for(tiling)
    assert slot.build(32, 2, None).window == "fit" and rows <= tiling.rows


def test_what_cannot_be_is_refused_before_any_work():
    with pytest.raises(ValueError, match="sparsity is 1"):
        BSA(sparsity=1.0)
    with pytest.raises(ValueError, match=r"window=.* does not divide the tile \(3, 5, 4\)"):
        BSA(tile=None, window=(2, 2, 2)).tiling((21, 30, 52))
    assert BSA(tile=None, window=(3, 5, 2)).tiling((21, 30, 52)) == VideoTiling(
        (21, 30, 52), (3, 5, 4)
    )


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(keep=0), "keep=0 must be in"),
        (dict(keep="x"), "keep='x' must be in"),
        (dict(keep=2), "keep=2 must be in"),
        (dict(window="x"), "window='x' must be three positive ints"),
        (dict(window=2), "window=2 must be three"),
        (dict(window=(2, 0, 2)), r"window=\(2, 0, 2\) must be three"),
        (dict(fill="x"), "fill='x' must be one of nearest, center"),
        (dict(kv=2.5), "kv=2.5 must be a rule, or an int"),
        (dict(kv=0), "kv=0 must be a rule, or an int"),
        (dict(sparsity="0.9"), "sparsity is '0.9'; give 0 <= sparsity < 1"),
    ],
    ids=str,
)
def test_options_that_fit_no_video_are_refused_as_they_are_given(options, words):
    with pytest.raises(ValueError, match=words):
        BSA(**options)
