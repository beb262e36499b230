"""BSA's CUDA path on a real GPU: outputs, gradients, padding, synchronisation, both kernels."""

import pytest
import torch
from laws import assert_accurate, with_fused
from on_cuda import draw, with_gradients

from flexsparse import (
    Mass,
    Threshold,
    TopK,
    VideoTiling,
    bsa_attention,
    prune_queries,
    reference,
    restore_queries,
)
from flexsparse.bsa import bsa_tile_map
from flexsparse.stages.queries import choose_queries, fill_slots, gather_rows
from flexsparse.stages.windows import Windows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

SHAPES = [
    pytest.param((8, 8, 12), (4, 4, 4), (2, 2, 2), id="full64"),
    pytest.param((6, 10, 12), (3, 5, 4), (3, 5, 2), id="padded64"),
    pytest.param((7, 9, 10), (4, 4, 4), (2, 2, 2), id="ragged64"),
    pytest.param((8, 8, 24), (4, 4, 8), (2, 2, 2), id="full128"),
]


@pytest.mark.parametrize("video, tile, window", SHAPES)
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rule", [TopK(2), Threshold(2), Mass(0.8)], ids=["topk", "thr", "mass"])
def test_outputs_and_gradients_equal_the_oracle(video, tile, window, dim, dtype, rule):
    tiling, inputs = VideoTiling(video, tile), draw(VideoTiling(video, tile), 3, dim, dtype)
    q, k, _ = map(tiling.to_tiles, inputs)
    kept = prune_queries(q, tiling, keep=0.5, window=window)
    tile_map = bsa_tile_map(kept, k, tiling, kv=rule)
    stays = torch.zeros(*kept.index.shape[:3], tiling.rows + 1, device="cuda")
    stays.scatter_(-1, torch.where(kept.index < 0, tiling.rows, kept.index).long(), 1)
    stays = tiling.from_tiles(stays[..., :-1].flatten(-2)[..., None])[..., 0].bool()

    def ours(*x):
        x = [tiling.to_tiles(t) for t in x]
        return tiling.from_tiles(bsa_attention(*x, tiling, kv=rule, window=window))

    def oracle(dtype):
        def compute(*x):
            choices = dict(keep=0.5, window=window, tile_map=tile_map, kept=stays, dtype=dtype)
            return reference.bsa(*x, video, tiling.tile, **choices)

        return compute

    doubles = [x.detach().double().requires_grad_() for x in inputs]
    exact = with_gradients(oracle(torch.float64), doubles)
    compute = oracle(dtype)
    plain = [with_gradients(compute, inputs), with_fused(with_gradients, compute, inputs)]
    assert_accurate(with_gradients(ours, inputs), plain, exact, inputs)


@pytest.mark.parametrize("video, tile, window", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_kernels_equal_their_twins(video, tile, window, dtype):
    tiling = VideoTiling(video, tile)
    windows = Windows(tiling, 0.5, window)
    q = tiling.to_tiles(draw(tiling, 3, 64, dtype)[0])
    kept = prune_queries(q, tiling, keep=0.5, window=window)
    twin = choose_queries(q.detach(), windows)
    assert (twin == kept.index).double().mean() > 0.99, "but for near ties"
    assert torch.equal(gather_rows(q, kept.index, tiling.rows, holes=True), kept.q)
    of_tiles, stays = kept.q.detach().float().unflatten(2, kept.index.shape[2:]), kept.index >= 0
    plain, exact = (x.sum(3) / stays.sum(-1)[..., None] for x in (of_tiles, of_tiles.double()))
    assert_accurate([kept.pooled], [[plain]], [exact], [of_tiles])
    again = prune_queries(q, tiling, keep=0.5, window=window)
    assert torch.equal(again.index, kept.index) and torch.equal(again.pooled, kept.pooled)
    for fill in ("nearest", "center"):
        slots = fill_slots(kept.index, windows, fill)
        due = gather_rows(kept.q, slots, windows.kept_rows, holes=True)
        assert torch.equal(restore_queries(kept.q, kept, tiling, fill=fill), due)


@pytest.mark.parametrize("keep", [0.07, 0.1, 1 / 3, 0.6, 0.99])
def test_every_window_keeps_its_quota(keep):
    for tiling, window in (
        (VideoTiling((7, 9, 10)), (2, 2, 2)),
        (VideoTiling((7, 9, 10), (4, 5, 5)), (4, 5, 5)),  # 0.07 * 100 is above 7 in fp64
    ):
        windows = Windows(tiling, keep, window)
        q = tiling.to_tiles(draw(tiling, 1, 64, torch.bfloat16)[0])
        index = prune_queries(q, tiling, keep=keep, window=window).index
        slots = index[..., : windows.num_windows * windows.per_window]
        found = (slots.unflatten(-1, (-1, windows.per_window)) >= 0).sum(-1)
        assert torch.equal(found, windows.tables(q.device).quota.expand_as(found))


def test_nothing_is_read_back_from_the_device():
    tiling = VideoTiling((7, 9, 10))
    tiled = [tiling.to_tiles(x) for x in draw(tiling, 3, 64, torch.bfloat16)]

    def step():
        out = bsa_attention(*tiled, tiling, kv=Mass(0.8), window=(2, 2, 2))
        torch.autograd.grad(out.square().sum(), tiled)

    step()  # compile
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
