"""The CUDA path on a real GPU: outputs, gradients, padding, synchronisation, compilations."""

import pytest
import torch
from laws import assert_accurate, with_fused
from on_cuda import draw, with_gradients

from flexsparse import (
    Threshold,
    TopK,
    VideoTiling,
    flex_attention,
    reference,
    vsa_attention,
    vsa_mask,
)
from flexsparse.vsa import vsa_tile_map

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

SHAPES = [
    pytest.param((8, 8, 12), (4, 4, 4), id="full64"),
    pytest.param((6, 10, 12), (3, 5, 4), id="padded64"),
    pytest.param((7, 9, 10), (4, 4, 4), id="ragged64"),
    pytest.param((8, 8, 24), (4, 4, 8), id="full128"),
    pytest.param((5, 6, 7), (2, 4, 4), id="ragged32"),
]


@pytest.mark.parametrize("video, tile", SHAPES)
@pytest.mark.parametrize("dim", [64, 80, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gates", [0, 2])
def test_outputs_and_gradients_equal_the_oracle(video, tile, dim, dtype, gates):
    tiling, top_k = VideoTiling(video, tile), 3
    inputs = draw(tiling, 3 + gates, dim, dtype)
    chosen = vsa_tile_map(*map(tiling.to_tiles, inputs[:2]), tiling, top_k=top_k)

    def ours(*x):
        x = [tiling.to_tiles(t) for t in x]
        gates = dict(zip(("gate_coarse", "gate_fine"), x[3:]))
        return tiling.from_tiles(vsa_attention(*x[:3], tiling, top_k=top_k, **gates))

    def oracle(dtype):
        def compute(*x):
            gates = dict(zip(("gate_coarse", "gate_fine"), x[3:]))
            choice = dict(top_k=top_k, tile_map=chosen, dtype=dtype)
            return reference.vsa(*x[:3], video, tiling.tile, **choice, **gates)

        return compute

    doubles = [x.detach().double().requires_grad_() for x in inputs]
    exact = with_gradients(oracle(torch.float64), doubles)
    compute = oracle(dtype)
    plain = [with_gradients(compute, inputs), with_fused(with_gradients, compute, inputs)]
    assert_accurate(with_gradients(ours, inputs), plain, exact, inputs)


@pytest.mark.parametrize("video, tile", SHAPES)
def test_torch_reads_the_mask_the_same_without_kernel_options(video, tile):
    from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention

    tiling = VideoTiling(video, tile)
    qkv = [tiling.to_tiles(x) for x in draw(tiling, 3, 64, torch.bfloat16)]
    mask = vsa_mask(*qkv[:2], tiling, top_k=3)
    compiled = torch.compile(torch_flex_attention, dynamic=False, fullgraph=True)
    theirs = tiling.from_tiles(compiled(*qkv, block_mask=mask))
    ours = tiling.from_tiles(flex_attention(*qkv, block_mask=mask))
    map_ = mask.to_dense().bool().cpu()
    raster = [tiling.from_tiles(x).double().cpu() for x in qkv]
    exact = reference.vsa(*raster, video, tiling.tile, top_k=3, tile_map=map_).cuda()
    assert_accurate([ours], [[theirs]], [exact])
    assert_accurate([theirs], [[ours]], [exact])


@pytest.mark.parametrize("video, tile", SHAPES)
def test_nan_in_padding_changes_nothing(video, tile):
    tiling = VideoTiling(video, tile)
    raster = [x.detach() for x in draw(tiling, 6, 64, torch.bfloat16)]
    *clean, grad = [tiling.to_tiles(x) for x in raster]
    valid = tiling.valid("cuda")[:, None]
    dirty = [torch.where(valid, x, torch.nan).requires_grad_() for x in clean]
    clean = [x.requires_grad_() for x in clean]

    def compute(q, k, v, gate_coarse, gate_fine):
        gates = dict(gate_coarse=gate_coarse, gate_fine=gate_fine)
        return vsa_attention(q, k, v, tiling, top_k=3, **gates)

    expected, out = compute(*clean), compute(*dirty)
    assert torch.equal(out, expected)
    wanted = torch.autograd.grad(expected, clean, grad)
    found = torch.autograd.grad(out, dirty, torch.where(valid, grad, torch.nan))
    for a, b in zip(found, wanted):
        assert torch.equal(tiling.from_tiles(a), tiling.from_tiles(b))


@pytest.mark.parametrize("video, tile", SHAPES)
@pytest.mark.parametrize("rule", [TopK, Threshold])
def test_a_number_of_tiles_on_the_device_makes_the_same_mask(video, tile, rule):
    tiling = VideoTiling(video, tile)
    q, k = (tiling.to_tiles(x) for x in draw(tiling, 2, 64, torch.bfloat16))
    number = torch.zeros((), dtype=torch.int32, device="cuda")
    for tiles in (1, 3):
        number.fill_(tiles)
        mask = vsa_mask(q, k, tiling, top_k=rule(number, max_tiles=4))
        wanted = vsa_mask(q, k, tiling, top_k=rule(tiles, max_tiles=4))
        assert torch.equal(mask.to_dense(), wanted.to_dense())


@pytest.mark.parametrize("video, tile", SHAPES)
def test_without_a_rule_attention_is_dense(video, tile):
    tiling = VideoTiling(video, tile)
    inputs = draw(tiling, 3, 64, torch.bfloat16)

    def ours(*x):
        return tiling.from_tiles(vsa_attention(*map(tiling.to_tiles, x), tiling, top_k=None))

    doubles = [x.detach().double().requires_grad_() for x in inputs]
    dense = torch.nn.functional.scaled_dot_product_attention
    exact, plain = with_gradients(dense, doubles), with_gradients(dense, inputs)
    assert_accurate(with_gradients(ours, inputs), [plain], exact, inputs)


def test_nothing_waits_for_the_device_and_eager_calls_compile_once():
    tiling = VideoTiling((7, 9, 10), (4, 4, 4))
    raster = draw(tiling, 4, 64, torch.bfloat16)
    inputs = [tiling.to_tiles(x).detach().requires_grad_() for x in raster]

    def step():
        out = vsa_attention(*inputs[:3], tiling, top_k=3, gate_coarse=inputs[3])
        return torch.autograd.grad(out.sum(), inputs)

    step()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


def test_head_dims_that_the_kernels_cannot_take_are_named():
    q = torch.randn(1, 1, 128, 24, device="cuda")
    with pytest.raises(ValueError, match="head dims 24 and 24 must be multiples of 16 on CUDA"):
        flex_attention(q, q, q)
