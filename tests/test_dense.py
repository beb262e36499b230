"""Dense attention on tile-major tensors, and as what a sparse layer does without a rule."""

import torch
import torch.nn.functional as F
from hypothesis import given
from laws import assert_accurate, poison, problems, tensors

from flexsparse import VideoTiling, vsa_attention
from flexsparse.engines.dense import dense_attention
from flexsparse.nn import BSA, VSA


def differentiate(compute, inputs):
    out = compute(*inputs)
    return [out, *torch.autograd.grad(out.square().sum(), inputs)]


@given(problems())
def test_it_is_attention_of_all_tokens_whatever_stands_in_padding(problem):
    tiling, inputs = problem["tiling"], tensors(3, problem)

    def tiled(*qkv):
        rows = [poison(tiling.to_tiles(x), tiling) for x in qkv]
        return tiling.from_tiles(dense_attention(*rows, tiling))

    exact = [x.detach().double().requires_grad_() for x in inputs]
    results = [differentiate(F.scaled_dot_product_attention, x) for x in (inputs, exact)]
    assert_accurate(differentiate(tiled, inputs), results[:1], results[1], inputs)


def test_fewer_key_heads_want_to_be_asked_for():
    tiling = VideoTiling((3, 4, 5), (2, 2, 2))
    q, k = (tiling.to_tiles(torch.randn(1, heads, 60, 16)) for heads in (4, 2))
    grouped = dense_attention(q, k, k, tiling, enable_gqa=True)
    wide = k.repeat_interleave(2, 1)
    assert torch.equal(grouped, dense_attention(q, wide, wide, tiling))
    assert torch.equal(BSA(None)(q, q, k, k, tiling), grouped)


@given(problems())
def test_a_layer_without_a_rule_attends_to_all_tiles(problem):
    tiling, n = problem["tiling"], problem["tiling"].num_tiles
    inputs = tensors(5, problem)

    def vsa(top_k):
        def compute(q, k, v, coarse, fine):
            gates = dict(gate_coarse=coarse, gate_fine=fine)
            return vsa_attention(q, k, v, tiling, top_k=top_k, **gates)

        return compute

    exact = [tiling.to_tiles(x).detach().double().requires_grad_() for x in inputs]
    tiled = [x.detach().float().requires_grad_() for x in exact]
    ours, listed, truth = (
        differentiate(vsa(k), x) for k, x in ((None, tiled), (n, tiled), (None, exact))
    )
    assert_accurate(ours, [listed], truth, tiled)
    fine = dense_attention(*tiled[:3], tiling)
    x, width = tiled[0].detach().transpose(1, 2).flatten(2), problem["heads"] * problem["dim"]
    for layer in (BSA(None, keep=0.5), VSA(width, problem["heads"], None, adapt=True)):
        assert torch.equal(layer(x, *tiled[:3], tiling), fine)
