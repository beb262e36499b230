"""A layer that is recomputed chooses the same tiles, and a compiled one equals the eager one."""

import torch
from laws import assert_accurate
from torch.utils.checkpoint import checkpoint

from flexsparse import VideoTiling, vsa_attention
from flexsparse.choice import rules, selection
from flexsparse.nn import VSA

tiling = VideoTiling((5, 8, 9), (4, 4, 4))


def drawn():
    generator = torch.Generator().manual_seed(0)
    shape = (1, 2, tiling.padded_tokens, 16)
    return [torch.randn(shape, generator=generator).requires_grad_() for _ in range(4)]


def attend(q, k, v, gate):
    return vsa_attention(q.sin(), k.cos(), v, tiling, top_k=3, gate_coarse=gate)


def test_a_checkpointed_layer_chooses_the_same_tiles(monkeypatch):
    choices = []

    def recorded(scores, top_k):
        choices.append(selection.select_top_k(scores, top_k))
        return choices[-1]

    inputs = drawn()
    plain = torch.autograd.grad(attend(*inputs).square().sum(), inputs)
    monkeypatch.setattr(rules, "select_top_k", recorded)
    out = checkpoint(attend, *inputs, use_reentrant=False)
    again = torch.autograd.grad(out.square().sum(), inputs)
    assert len(choices) == 2 and torch.equal(*choices)
    assert all(torch.equal(a, b) for a, b in zip(plain, again))


def test_a_whole_layer_compiles_forward_and_backward_once():
    layer = VSA(32, 2, top_k=3)
    # all of compilation but Inductor's code, which tests/models/test_video_dit_compile.py has
    backend = "aot_eager_decomp_partition"
    compiled = torch.compile(layer, fullgraph=True, dynamic=False, backend=backend)
    torch._dynamo.utils.counters.clear()

    def run(module, dtype, seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, tiling.padded_tokens, 32, generator=generator)
        qkv = [torch.randn(1, 2, tiling.padded_tokens, 16, generator=generator) for _ in range(3)]
        inputs = [t.to(dtype).requires_grad_() for t in (x, *qkv)]
        out = module(*inputs, tiling)
        return out, *torch.autograd.grad(out.square().sum(), inputs)

    for seed in range(3):  # other data, another choice of tiles: the same code
        found, plain = run(compiled, torch.float32, seed), run(layer, torch.float32, seed)
        exact = run(layer.double(), torch.float64, seed)
        layer.float()
        assert_accurate(found, [plain], exact)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
