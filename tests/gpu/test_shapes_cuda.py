"""Every tile shape, head dim and dtype on a real GPU: accuracy, bits, two masks, what is saved."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from laws import assert_accurate, with_fused
from on_cuda import draw, with_gradients
from torch.nn.attention import SDPBackend, sdpa_kernel

from flexsparse import Threshold, TopK, VideoTiling, bsa_attention, reference, vsa_attention
from flexsparse.vsa import vsa_tile_map

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

TILINGS = {
    "full64": VideoTiling((8, 8, 12), (4, 4, 4)),
    "padded64": VideoTiling((6, 10, 12), (3, 5, 4)),
    "ragged64": VideoTiling((9, 9, 10), (4, 4, 4)),  # 27 tiles: the last pair has one
    "full128": VideoTiling((8, 8, 24), (4, 4, 8)),
    "ragged32": VideoTiling((5, 6, 7), (2, 4, 4)),
}
shapes = pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS)
pairs = pytest.mark.parametrize("query_tiles", [1, 2])
halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
_finished = itertools.count(1)


@pytest.fixture(autouse=True)
def room_to_compile():
    """torch refuses to compile one function for more than 64 shapes."""
    yield
    if next(_finished) % 24 == 0:
        torch.compiler.reset()


def in_tiles(tiling, rule, query_tiles=1):
    def compute(q, k, v):
        return vsa_attention(q, k, v, tiling, top_k=rule, query_tiles=query_tiles)

    return compute


def check_against_oracle(tiling, inputs, rule, query_tiles):
    """Outputs and gradients in raster order, given our choice of tiles."""
    q, k = (tiling.to_tiles(x.detach()) for x in inputs[:2])
    chosen = vsa_tile_map(q, k, tiling, top_k=rule, query_tiles=query_tiles)

    def ours(*x):
        return tiling.from_tiles(in_tiles(tiling, rule, query_tiles)(*map(tiling.to_tiles, x)))

    def oracle(dtype):
        def compute(*x):
            choice = dict(top_k=0, tile_map=chosen, dtype=dtype)
            return reference.vsa(*x, tiling.video, tiling.tile, **choice)

        return compute

    doubles = [x.detach().double().requires_grad_() for x in inputs]
    exact = with_gradients(oracle(torch.float64), doubles)
    compute = oracle(inputs[0].dtype)
    plain = [with_gradients(compute, inputs), with_fused(with_gradients, compute, inputs)]
    assert_accurate(with_gradients(ours, inputs), plain, exact, inputs)


@shapes
@pytest.mark.parametrize("dim", [64, 80, 96, 128])
@halves
@pairs
@pytest.mark.parametrize("logits", [1, 64])
def test_outputs_and_gradients_equal_the_oracle(tiling, dim, dtype, query_tiles, logits):
    q, k, v = draw(tiling, 3, dim, dtype)
    q = (q.detach() * logits).requires_grad_()
    check_against_oracle(tiling, [q, k, v], TopK(3), query_tiles)


@shapes
@halves
@pairs
@pytest.mark.parametrize("rows", ["uneven", "one tile", "all tiles"])
def test_rows_of_any_number_of_tiles_equal_the_oracle(tiling, dtype, query_tiles, rows):
    inputs = draw(tiling, 3, 64, dtype)
    rules = {"uneven": Threshold(2), "one tile": TopK(1), "all tiles": TopK(tiling.num_tiles)}
    if rows == "uneven":
        q, k = (tiling.to_tiles(x.detach()) for x in inputs[:2])
        tile_map = vsa_tile_map(q, k, tiling, top_k=rules[rows], query_tiles=query_tiles)
        assert len(tile_map.sum(-1).unique()) > 1
    check_against_oracle(tiling, inputs, rules[rows], query_tiles)


@shapes
@halves
@pairs
@pytest.mark.parametrize("method", ["vsa", "bsa"])
def test_two_runs_give_the_same_bits(tiling, dtype, query_tiles, method):
    inputs = [tiling.to_tiles(x).detach().requires_grad_() for x in draw(tiling, 3, 64, dtype)]

    def bsa(q, k, v):
        return bsa_attention(q, k, v, tiling, kv=Threshold(2), query_tiles=query_tiles)

    compute = bsa if method == "bsa" else in_tiles(tiling, Threshold(2), query_tiles)
    first = with_gradients(compute, inputs)
    for _ in range(3):
        again = with_gradients(compute, inputs)
        assert all(torch.equal(a, b) for a, b in zip(again, first))


@pytest.mark.parametrize(
    "first, second",
    [
        pytest.param(("padded64", TopK(3)), ("full64", TopK(3)), id="other-tiling"),
        pytest.param(("padded64", TopK(3)), ("padded64", TopK(5)), id="other-rule"),
        pytest.param(("full64", Threshold(2)), ("full64", TopK(2)), id="uneven-and-even"),
    ],
)
@pairs
def test_two_masks_in_one_process_do_not_disturb_each_other(first, second, query_tiles):
    tiling, rule = TILINGS[first[0]], first[1]
    inputs = [x.detach() for x in draw(tiling, 3, 64, torch.bfloat16)]
    tiled = [tiling.to_tiles(x).requires_grad_() for x in inputs]
    compute = in_tiles(tiling, rule, query_tiles)
    before = with_gradients(compute, tiled)
    other = TILINGS[second[0]]
    assert other.padded_tokens == tiling.padded_tokens, "tensors of the same shapes"
    check_against_oracle(other, draw(other, 3, 64, torch.bfloat16), second[1], query_tiles)
    after = with_gradients(compute, tiled)
    assert all(torch.equal(a, b) for a, b in zip(after, before))
    check_against_oracle(tiling, [x.requires_grad_() for x in inputs], rule, query_tiles)


def saved_bytes(compute, inputs):
    """Bytes of the floating-point tensors kept for the backward, each once: lists are ints."""
    kept = {}

    def keep(x):
        if x.is_floating_point():
            kept[x.data_ptr()] = x.numel() * x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        compute(*inputs)
    return sum(kept.values())


@shapes
@pytest.mark.parametrize("dim", [64, 128])
@pairs
def test_the_backward_keeps_no_more_than_dense_attention(tiling, dim, query_tiles):
    drawn = draw(tiling, 3, dim, torch.bfloat16)
    inputs = [tiling.to_tiles(x).detach().requires_grad_() for x in drawn]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        dense = saved_bytes(F.scaled_dot_product_attention, inputs)
    rows = inputs[0].numel() // dim
    assert dense >= rows * (4 * dim * 2 + 4), "q, k, v, out in bf16, lse in fp32"
    assert saved_bytes(in_tiles(tiling, TopK(3), query_tiles), inputs) <= dense
