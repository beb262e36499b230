"""The ablations' slots against attention by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import tilings

from benchmarks.evidence.slots import (
    FineGatedVSA,
    MaxPooledVSA,
    OwnTileVSA,
    RandomVSA,
    UngatedVSA,
    ZeroFillBSA,
    pool_max,
)
from flexsparse import VideoTiling, prune_queries
from flexsparse.reference import tile_of_token
from models.attention import BSA, VSA


@given(tilings(max_side=6), st.integers(0, 2**31))
def test_pool_max_sees_valid_rows_alone(tiling, seed):
    x = torch.randn(1, 1, tiling.tokens, 8, generator=torch.Generator().manual_seed(seed))
    of = tile_of_token(tiling.video, tiling.tile)
    exact = torch.stack([x[0, 0, of == i].amax(0) for i in range(tiling.num_tiles)])
    tiled = torch.where(tiling.valid()[:, None], tiling.to_tiles(x), torch.inf)
    assert torch.equal(pool_max(tiled, tiling)[0, 0], exact)


@pytest.mark.parametrize("slot", [MaxPooledVSA(sparsity=0), UngatedVSA(sparsity=0)])
def test_with_all_tiles_the_fine_stage_is_dense_attention(slot):
    tiling = VideoTiling((4, 6, 9))
    x, q, k, v = layer_inputs(tiling)
    layer = slot.build(32, 2, tiling)
    everything = VSA(sparsity=0).build(32, 2, tiling)
    everything.load_state_dict(layer.state_dict() or everything.state_dict())
    if isinstance(slot, UngatedVSA):
        with torch.no_grad():
            for gate in (everything.gate_coarse, everything.gate_fine):
                gate.weight.zero_(), gate.bias.fill_(1)
        expected = everything(x, q, k, v, tiling)
    else:  # its coarse stage pools otherwise
        with torch.no_grad():
            for module in (layer, everything):
                module.gate_coarse.weight.zero_(), module.gate_coarse.bias.zero_()
        expected = everything(x, q, k, v, tiling)
    torch.testing.assert_close(layer(x, q, k, v, tiling), expected)


@pytest.mark.parametrize("sparsity", [0.5, 0.0])
def test_a_gated_fine_stage_is_vsa_whose_coarse_gate_is_shut(sparsity):
    """Its gate starts as VSA's fine gate, about 1: nothing of the stage is lost or added."""
    tiling = VideoTiling((4, 8, 8), (2, 4, 4))
    x, q, k, v = layer_inputs(tiling)
    gated = FineGatedVSA(sparsity=sparsity).build(32, 2, tiling)
    vsa = VSA(sparsity=sparsity).build(32, 2, tiling)
    with torch.no_grad():
        vsa.gate_coarse.weight.zero_()
        vsa.gate_fine.weight.copy_(gated.gate_coarse.weight)
    assert sum(p.numel() for p in gated.parameters()) == 32 * 32 + 32
    torch.testing.assert_close(gated(x, q, k, v, tiling), vsa(x, q, k, v, tiling))


def test_its_own_tile_alone_is_dense_attention_in_each_tile():
    tiling = VideoTiling((4, 6, 9))
    x, q, k, v = layer_inputs(tiling)
    layer = OwnTileVSA(top_k=1).build(32, 2, tiling)
    of = tiling.to_tiles(tile_of_token(tiling.video, tiling.tile)[None, None, :, None].float())
    live = tiling.valid()
    same = (of[0, 0] == of[0, 0].T) & live & live[:, None]
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=same)
    torch.testing.assert_close(layer(x, q, k, v, tiling)[:, :, live], exact[:, :, live])


def test_random_tiles_are_the_same_however_a_model_is_made():
    """A run that goes on builds its model on the meta device."""
    tiling = VideoTiling((4, 8, 8), (2, 4, 4))
    x, q, k, v = layer_inputs(tiling)
    layer = RandomVSA(top_k=3).build(32, 2, tiling)
    with torch.device("meta"):
        outline = RandomVSA(top_k=3).build(32, 2, tiling)
    outline.to_empty(device="cpu")
    drawn = layer.choose(q, k, tiling).tile_map
    assert torch.equal(drawn, outline.choose(q, k, tiling).tile_map)
    assert torch.equal(layer(x, q, k, v, tiling), outline(x, q, k, v, tiling))


OWN = {
    kind: kind(sparsity=0.5, tile=(2, 4, 4))
    for kind in (MaxPooledVSA, UngatedVSA, FineGatedVSA, OwnTileVSA, RandomVSA, ZeroFillBSA)
}


@pytest.mark.parametrize("kind", OWN)
def test_a_block_with_each_slot_is_one_graph(kind):
    """As the trainer compiles it where an experiment has a GPU."""
    tiling = VideoTiling((4, 8, 8), (2, 4, 4))
    layer = OWN[kind].build(32, 2, tiling)
    x, q, k, v = layer_inputs(tiling)
    once = torch.compile(layer, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(once(x, q, k, v, tiling), layer(x, q, k, v, tiling))


def layer_inputs(tiling):
    torch.manual_seed(0)
    x = torch.randn(1, tiling.tokens, 32)
    return [tiling.to_tiles(y) for y in (x, *torch.randn(3, 1, 2, tiling.tokens, 16))]


def test_zero_fill_leaves_pruned_queries_without_output():
    tiling = VideoTiling((4, 8, 8))
    x, q, k, v = layer_inputs(tiling)
    filled, nearest = (
        kind(sparsity=0.5, keep=0.5).build(32, 2, tiling)(x, q, k, v, tiling)
        for kind in (ZeroFillBSA, BSA)
    )
    stays = prune_queries(q, tiling, keep=0.5, window=(2, 2, 2)).mask
    assert torch.equal(filled[stays], nearest[stays]) and not filled[~stays].any()
