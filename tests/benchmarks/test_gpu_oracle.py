"""The GPU benchmark's oracle: it finds what is wrong with a method, and asks nothing else."""

import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from gpu_settings import CPU, SMALL

from benchmarks.gpu import oracle
from benchmarks.gpu.cases import Method, methods
from benchmarks.gpu.drawn import forget
from benchmarks.gpu.layers import draw
from benchmarks.gpu.methods import build
from benchmarks.gpu.oracle import check, settled
from flexsparse import vsa_attention


@pytest.fixture(autouse=True)
def fresh_compiler():
    """All layers of a kind are one function to the compiler, which takes few versions of it."""
    forget()


@pytest.mark.parametrize("method", [m for m in methods(True) if not m.kind.startswith("dense")])
def test_what_is_wrong_is_found(method):
    tensors = draw(SMALL, CPU, torch.bfloat16)
    layer = build(method, SMALL, tensors)
    ratios = check(method, SMALL, layer, tensors)
    names = ["out", "dq", "dk", "dv", "dgate_coarse", "dgate_fine"][: 1 + len(layer.inputs)]
    assert max(ratios.values()) <= 1 and [*ratios] == [*names, "out_without_grad"]
    tile = torch.ones(SMALL.tiling.padded_tokens, 1)
    tile[2 * SMALL.tiling.rows : 3 * SMALL.tiling.rows] = 0.9  # of one tile of twelve
    last = torch.ones(2, 1, 1)
    last[-1] = -7  # of the last head

    def found(wrong, factor):
        def broken(*inputs):
            if wrong == "out_without_grad" and not torch.is_grad_enabled():
                out = layer.attend(*inputs)
                return (out * factor).to(out.dtype)
            given = [
                Scaled.apply(x, factor if f"d{name}" == wrong else 1)
                for name, x in zip(("q", "k", "v", "gate_coarse", "gate_fine"), inputs)
            ]
            out = layer.attend(*given)
            wronged = out + (out * (factor - 1)).detach()
            return wronged.to(out.dtype) if wrong == "out" else out

        ratios = check(method, SMALL, layer._replace(attend=broken), tensors)
        return [name for name, ratio in ratios.items() if not ratio <= 1]

    known = {}

    def remembered(*given):
        """What is exact and what plain PyTorch gives, which the layer's own results leave alone."""
        head, dtype, attention = given[3], *given[5:]
        key = head, dtype, attention
        if key not in known:
            known[key] = results(*given)
        return known[key]

    results = oracle._results
    sure = settled(method, SMALL, tensors)
    remembering = mock.patch.object(oracle, "_results", remembered)
    settling = mock.patch.object(oracle, "settled", lambda *_: sure)
    for wrong in ratios:
        due = [wrong, "out_without_grad"] if wrong == "out" else [wrong]
        for factor in (1.05, tile, last, torch.nan):
            with remembering, settling:
                assert found(wrong, factor) == due, (wrong, factor)


def test_nothing_is_asked_where_rounding_decides_the_choice():
    tiling = SMALL.tiling
    tensors = draw(SMALL, CPU, torch.bfloat16)
    for method in (Method("vsa", 0.5, 2), Method("bsa", 0.75), Method("bsa_top", 0.75, 3)):
        sure = settled(method, SMALL, tensors)
        assert sure.shape == (1, 2, tiling.num_tiles) and sure.float().mean() > 0.9
        tied = [tensors[0], torch.ones_like(tensors[1]), *tensors[2:]]
        assert not settled(method, SMALL, tied).any()
        # another choice in one query block alone, which is not settled
        flipped = draw(SMALL, CPU, torch.bfloat16)
        block = slice(0, method.query_tiles * tiling.rows)
        flipped[0][:, :, block] *= -1
        layer = build(method, SMALL, flipped)

        def other(q, k, v, *gates, layer=layer, block=block):
            turned = torch.cat([-q[:, :, block], q[:, :, block.stop :]], 2)
            return layer.attend(turned, k, v, *gates)

        mine = build(method, SMALL, tensors)
        with mock.patch.object(oracle, "settled", lambda *_: None):
            ratios = check(method, SMALL, mine._replace(attend=other), tensors)
        assert not max(ratios.values()) <= 1
        unsure = torch.ones(1, 2, tiling.num_tiles, dtype=torch.bool)
        unsure[..., : method.query_tiles] = False
        with mock.patch.object(oracle, "settled", lambda *_, unsure=unsure: unsure):
            ratios = check(method, SMALL, mine._replace(attend=other), tensors)
        assert max(ratios.values()) <= 1
    assert settled(Method("fine", 0.5), SMALL, tensors) is None


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, *grads):
        factor = ctx.factor
        if isinstance(factor, torch.Tensor) and factor.shape[0] > grads[0].shape[-2]:
            factor = 0.9  # queries that are kept are fewer than tokens
        return (grads[0] * factor).to(grads[0].dtype), None


def test_fastvideos_kernels_are_called_as_they_want_and_checked(monkeypatch):
    seen = {}

    def video_sparse_attn(q, k, v, *, topk, compress_attn_weight, **sizes):
        seen.update(sizes, topk=topk)
        fine = torch.ones_like(compress_attn_weight)
        gates = dict(gate_coarse=compress_attn_weight, gate_fine=fine)
        return vsa_attention(q, k, v, SMALL.tiling, top_k=topk, **gates)

    stub = SimpleNamespace(video_sparse_attn=video_sparse_attn)
    monkeypatch.setitem(sys.modules, "fastvideo_kernel", stub)
    tensors, method = draw(SMALL, CPU, torch.bfloat16), Method("fastvideo", 0.5)
    ratios = check(method, SMALL, build(method, SMALL, tensors), tensors)
    assert max(ratios.values()) <= 1 and "dgate_coarse" in ratios
    assert seen["block_size"] == (4, 4, 4) and seen["topk"] == 6
    assert torch.equal(seen["variable_block_sizes"], SMALL.tiling.counts())
