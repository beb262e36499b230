"""Text beside video, and Wan's model, on a real GPU."""

import dataclasses

import pytest
import torch
from laws import assert_accurate, with_fused
from on_cuda import draw, with_gradients

from flexsparse import Mass, Threshold, VideoTiling, bsa_attention, prune_queries, reference
from flexsparse import vsa_attention as vsa
from flexsparse.bsa import bsa_tile_map
from flexsparse.vsa import vsa_tile_map
from models.attention import BSA, VSA, Dense
from models.wan import debug

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

TILINGS = [
    pytest.param(VideoTiling((8, 8, 12), (4, 4, 4), text=128), id="full"),
    pytest.param(VideoTiling((6, 10, 12), (3, 5, 4), text=70), id="padded"),
    pytest.param(VideoTiling((7, 9, 10), (4, 4, 4), text=226), id="ragged"),
]


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("lengths", [None, (5, 66)], ids=["full", "varying"])
@pytest.mark.parametrize("method", ["vsa", "bsa"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_outputs_and_gradients_equal_the_oracle(tiling, lengths, method, compiled):
    dtype, video = torch.bfloat16, tiling.of_video
    inputs = draw(tiling, 5 if method == "vsa" else 3, 64, dtype)
    lengths = None if lengths is None else torch.tensor(lengths, device="cuda")
    q, k = (video.to_tiles(x[..., : video.tokens, :]) for x in inputs[:2])
    shape = tiling.video, tiling.tile
    if method == "vsa":
        chosen, kept = vsa_tile_map(q, k, video, top_k=3), None
    else:
        kept = prune_queries(q, video)
        chosen = bsa_tile_map(kept, k, video, kv=Threshold(3))
        stays = video.from_tiles(kept.mask.unsqueeze(-1).float()).squeeze(-1).bool()

    def attend(*x):
        x = [tiling.to_tiles(t) for t in x]
        if method == "bsa":
            return tiling.from_tiles(
                bsa_attention(*x, tiling, kv=Threshold(3), text_lengths=lengths)
            )
        gates = dict(gate_coarse=x[3], gate_fine=x[4], text_lengths=lengths)
        return tiling.from_tiles(vsa(*x[:3], tiling, top_k=3, **gates))

    ours = torch.compile(attend, fullgraph=True, dynamic=False) if compiled else attend

    def oracle(dtype):
        def compute(*x):
            options = dict(tile_map=chosen, text_lengths=lengths, dtype=dtype)
            if method == "bsa":
                options |= dict(keep=0.5, window=tiling.tile, kept=stays)
                return reference.bsa(*x, *shape, **options)
            gates = dict(gate_coarse=x[3], gate_fine=x[4])
            return reference.vsa(*x[:3], *shape, top_k=0, **gates, **options)

        return compute

    doubles = [x.detach().double().requires_grad_() for x in inputs]
    exact = with_gradients(oracle(torch.float64), doubles)
    compute = oracle(dtype)
    plain = [with_gradients(compute, inputs), with_fused(with_gradients, compute, inputs)]
    assert_accurate(with_gradients(ours, inputs), plain, exact, inputs)


@pytest.mark.parametrize("slot", [VSA(sparsity=0.0, adapt=True), BSA(kv=Mass(1), keep=1.0)])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_wan_with_all_tiles_is_the_dense_model(slot, compiled):
    torch.manual_seed(0)
    config = debug(dim=128, heads=2, video=(5, 18, 22))
    dense = config.build().cuda()
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    sparse = dataclasses.replace(config, attention=slot).build().cuda()
    sparse.load_state_dict(dense.state_dict(), strict=isinstance(slot, BSA))
    assert config.attention == Dense()
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(1, 16, *config.video, device="cuda", generator=generator)
    text = torch.randn(1, 512, config.text_dim, device="cuda", generator=generator)
    t = torch.tensor([0.5], device="cuda")
    exact = dense.double()(x.double(), t, text.double()).detach()
    plain = dense.bfloat16()(x.bfloat16(), t, text.bfloat16()).detach()
    model = torch.compile(sparse, fullgraph=True, dynamic=False) if compiled else sparse
    found = model.bfloat16()(x.bfloat16(), t, text.bfloat16()).detach()
    assert_accurate([found], [[plain]], [exact])
