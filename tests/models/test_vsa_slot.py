"""VSA inside a model: dense attention as its limit, conversion, padding that nobody sees."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from laws import seeds
from small_dit import assert_equals_dense, draw_batch, gradients, small_model

from flexsparse import VideoTiling
from models.attention import BSA, VSA, Dense

videos = st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 9))
tiles = st.tuples(*[st.integers(1, 4)] * 3)


@given(st.integers(1, 3000), st.integers(0, 999))
@settings(max_examples=100)
def test_top_k_is_the_whole_number_nearest_to_the_sparsity(frames, thousandths):
    sparsity = thousandths / 1000
    tiling = VideoTiling((frames, 1, 1), (1, 1, 1))
    top_k = VSA(sparsity=sparsity).top_k_for(tiling)
    assert 1 <= top_k <= frames
    assert top_k == 1 or abs((1 - top_k / frames) - sparsity) * frames <= 0.5 * (1 + 1e-9)


def test_a_choice_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="sparsity is 1"):
        VSA(sparsity=1.0)
    with pytest.raises(ValueError, match=r"top_k is 9, but .* has 8 tiles: give 1 <= top_k <= 8"):
        VSA(top_k=9).top_k_for(VideoTiling((8, 8, 8)))
    with pytest.raises(ValueError, match="top_k is 0"):
        VSA(top_k=0)
    with pytest.raises(ValueError, match="top_k=64 and sparsity=0.5: give one of them"):
        VSA(top_k=64, sparsity=0.5)
    for sparsity in ("0.9", True, float("nan"), -0.1):
        with pytest.raises(ValueError, match="give 0 <= sparsity < 1"):
            VSA(sparsity=sparsity)


@pytest.mark.parametrize("slot", [VSA, BSA])
def test_a_tile_and_query_tiles_that_fit_no_video_are_refused_as_they_are_given(slot):
    for tile in (4, (4, 4), (0, 4, 4), (4, 4, 4.0)):
        with pytest.raises(ValueError, match="tile must be three positive ints"):
            slot(tile=tile)
    for together in (0, 1.0, None):
        with pytest.raises(ValueError, match="query_tiles=.* must be an int of at least 1"):
            slot(query_tiles=together)


@pytest.mark.parametrize("slot", [VSA, BSA])
def test_query_tiles_that_choose_together_reach_the_layers(slot):
    model = small_model((4, 8, 8), slot(sparsity=0.5, tile=(2, 4, 4), query_tiles=2))
    assert {block.self_attention.slot.query_tiles for block in model.layers.values()} == {2}
    with pytest.raises(ValueError, match=r"query_tiles=9 must be an int in 1..8"):
        slot(query_tiles=9, tile=(2, 4, 4)).tiling((4, 8, 8))


def test_without_a_tile_the_one_of_least_padding_is_taken():
    assert VSA(tile=None).tiling((21, 30, 52)) == VideoTiling((21, 30, 52), (3, 5, 4))


def test_the_layers_select_what_the_model_says():
    model = small_model((4, 6, 8), VSA(sparsity=0.75, tile=(2, 2, 2)))
    assert model.top_k == 6
    assert {block.self_attention.slot.kv_rule for block in model.layers.values()} == {6}


def test_a_dense_checkpoint_lacks_the_gates_alone():
    dense = small_model()
    sparse = replace(dense.config, attention=VSA(top_k=1, adapt=True)).build()
    missing, unexpected = sparse.load_state_dict(dense.state_dict(), strict=False)
    assert not unexpected
    assert missing
    assert all("slot.gate_coarse" in name for name in missing)


def adapted(dense, tile):
    """The dense model with VSA in every layer, all tiles selected."""
    n = VideoTiling(dense.grid, tile).num_tiles
    sparse = replace(dense.config, attention=VSA(top_k=n, tile=tile, adapt=True)).build()
    sparse.load_state_dict(dense.state_dict(), strict=False)
    return sparse


@given(videos, tiles, seeds, st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=10)
def test_with_all_tiles_an_adapted_model_is_the_dense_one(video, tile, seed, dtype):
    dense = small_model(video, Dense(), seed).to(dtype)
    assert_equals_dense(adapted(dense, tile).to(dtype), dense, seed)


class Soil:
    """A pre-hook on the first block: overwrites the padded rows of tokens and rotary table."""

    def __init__(self, tiling: VideoTiling, value: float, seed: int):
        row = torch.arange(1.0, tiling.tokens + 1)[:, None]
        self.padding = tiling.to_tiles(row) == 0
        self.value, self.seed = value, seed

    def __call__(self, module, args):
        x, modulation, context, rotary, *rest = args
        torch.manual_seed(self.seed)
        x, rotary = (
            torch.where(self.padding, self.value * torch.randn_like(y), y) for y in (x, rotary)
        )
        return x, modulation, context, rotary, *rest


@given(videos, tiles, seeds, st.booleans())
@settings(max_examples=10)
def test_no_output_and_no_gradient_depends_on_padding(video, tile, seed, adapt):
    attention = VSA(sparsity=0.5, tile=tile, adapt=adapt)
    model = small_model(video, attention, seed)
    assume(model.tiling.padded_tokens > model.tiling.tokens)
    batch = draw_batch(model.config, seed=seed)
    clean = model(*batch)
    wanted = gradients(model, clean)
    for value in (1e4, torch.nan):
        soil = model.layers["0"].register_forward_pre_hook(Soil(model.tiling, value, seed))
        dirty = model(*batch)
        assert torch.equal(dirty, clean)
        if value == 1e4:  # a weight's own gradient is a product over all rows, where 0 * NaN is NaN
            for (name, gradient), same in zip(wanted.items(), gradients(model, dirty).values()):
                assert torch.equal(gradient, same), name
        soil.remove()


@given(videos, seeds, st.sampled_from([VSA(0.5), VSA(top_k=3), BSA(0.5), BSA(kv=2)]))
@settings(max_examples=10)
def test_a_layer_for_any_video_is_the_layer_for_each(video, seed, slot):
    tiling = slot.tiling(video)
    if getattr(slot, "top_k", 0) or getattr(slot, "kv", 0):
        assume(tiling.num_tiles >= 3)
    layers = [slot.build(32, 2, given) for given in (tiling, None)]
    layers[1].load_state_dict(layers[0].state_dict())
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, 1, 2, tiling.padded_tokens, 16).unbind()
    x = torch.randn(1, tiling.padded_tokens, 32)
    assert torch.equal(*(layer(x, q, k, v, tiling) for layer in layers))


@pytest.mark.parametrize("slot", [VSA(sparsity=0.5), BSA(sparsity=0.5)], ids=["vsa", "bsa"])
def test_a_compiled_layer_takes_any_batch(slot):
    tiling = slot.tiling((3, 9, 10))
    layer = slot.build(32, 2, None)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for batch in (2, 3, 1):
        q, k, v = torch.randn(3, batch, 2, tiling.padded_tokens, 16).unbind()
        x = torch.randn(batch, tiling.padded_tokens, 32)
        assert torch.equal(compiled(x, q, k, v, tiling), layer(x, q, k, v, tiling))
