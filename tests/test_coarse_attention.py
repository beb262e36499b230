"""Attention between tiles: the kernel (in Triton's interpreter where there is no GPU), its twin."""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_accurate, seeds

from flexsparse import reference
from flexsparse.selfcheck.accuracy import recomputed_attention
from flexsparse.stages import coarse
from flexsparse.stages.coarse import coarse_attention, coarse_attention_twin

device = "cuda" if torch.cuda.is_available() else "cpu"
linux = pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")


def operator(q, k, v):
    from flexsparse.kernels.coarse_attention import coarse_attention

    return coarse_attention(q, k, v, 1 / math.sqrt(q.shape[-1]), False)


def kernel(q, k, v):
    return operator(q, k, v)[0]


implementations = pytest.mark.parametrize(
    "attend", [pytest.param(kernel, id="triton", marks=linux), coarse_attention_twin]
)


@st.composite
def problems(draw):
    """Tiles and channels, rarely powers of two: q, k, v and the output's gradient [B, H, n, D]."""
    heads = draw(st.sampled_from([(1, 1), (1, 2), (2, 1)]))
    tiles, dim = draw(st.sampled_from([1, 5, 31, 33, 65])), draw(st.sampled_from([16, 24, 80, 144]))
    generator = torch.Generator().manual_seed(draw(seeds))
    q, *others = (torch.randn(*heads, tiles, dim, generator=generator) for _ in range(4))
    # Parts of tf32 lose a little more than fp32 does, and the more so over many channels. Of large
    # scores few tiles leave nothing to measure: a key each, and gradients that cancel, or not.
    factors = [1, 1, 64] if dim <= 80 and tiles > 5 else [1]
    return [q * draw(st.sampled_from(factors)), *others]


def with_gradients(attend, q, k, v, g):
    q, k, v = (x.detach().to(g.dtype).requires_grad_() for x in (q, k, v))
    out = attend(q, k, v)
    return [out, *torch.autograd.grad(out, (q, k, v), g.to(out.device))]


def everything(attend):
    """``attend`` over all pairs, of one that takes a mask."""
    return lambda q, k, v: attend(q, k, v, torch.ones(q.shape[2], q.shape[2], dtype=torch.bool))


def assert_right(ours, *inputs):
    exact = with_gradients(everything(reference.attention), *(x.double() for x in inputs))
    plain = [
        with_gradients(everything(attend), *inputs)
        for attend in (reference.attention, recomputed_attention)
    ]
    assert_accurate([x.cpu() for x in ours], plain, exact, inputs)


def in_memory(x, order):
    x = x.to(device)
    if order == "gap":
        return torch.cat([x, x], -1)[..., : x.shape[-1]]
    axes = {"whole": (0, 0), "heads inside": (1, 2), "channels outside": (2, 3)}[order]
    return x.transpose(*axes).contiguous().transpose(*axes)


@implementations
@settings(max_examples=8)
@given(problems(), st.sampled_from(["whole", "heads inside", "channels outside", "gap"]))
def test_values_and_gradients_are_those_of_dense_attention(attend, inputs, order):
    ours = with_gradients(attend, *(in_memory(x, order) for x in inputs))
    assert all(x.dtype == torch.float32 for x in ours)
    assert_right(ours, *inputs)


@implementations
def test_heads_that_share_keys_are_as_if_each_had_its_own(attend):
    q, g = (torch.randn(2, 6, 5, 16, device=device) for _ in range(2))
    k, v = (torch.randn(2, 2, 5, 16, device=device) for _ in range(2))
    own = lambda q, k, v: attend(q, *(x.repeat_interleave(3, 1) for x in (k, v)))  # noqa: E731
    found, due = (with_gradients(f, q, k, v, g) for f in (attend, own))
    assert [x.shape for x in found] == [x.shape for x in (q, q, k, v)]
    assert all(torch.equal(a, b) for a, b in zip(found, due, strict=True))


@linux
@settings(max_examples=3)
@given(problems())
def test_the_log_sum_exp_is_natural_and_has_no_gradient(inputs):
    q, k, v = (x.to(device).requires_grad_() for x in inputs[:3])
    lse = operator(q, k, v)[1]
    assert not lse.requires_grad and lse.dtype == torch.float32
    scores = [
        (q.to(dtype).cpu() @ k.to(dtype).cpu().mT / math.sqrt(q.shape[-1]))
        for dtype in (torch.float32, torch.float64)
    ]
    plain, exact = (s.logsumexp(-1).detach() for s in scores)
    assert_accurate([lse.cpu()], [[plain]], [exact], inputs[:2])


@implementations
@pytest.mark.parametrize("n, dim", [(1, 16), (40, 16), (70, 64)])
def test_scores_far_below_those_of_nothing(attend, n, dim):
    """The kernel's blocks have rows past the end, whose score is 0.

    So large scores leave one key to most rows. Errors come from the few rows that two keys share:
    only over many heads do they tell a worse kernel from bad luck.
    """
    generator = torch.Generator().manual_seed(n)
    q, k, v, g = (torch.randn(1, 16, n, dim, generator=generator) for _ in range(4))
    inputs = q - 20, k + 20, v, g
    ours = with_gradients(attend, *(x.to(device) for x in inputs))
    assert all(x.isfinite().all() for x in ours)
    assert_right(ours, *inputs)


@linux
@pytest.mark.skipif(device == "cuda", reason="a GPU has its own blocks")
@pytest.mark.parametrize("n, dim", [(33, 24), (131, 16)])
def test_blocks_of_hopper_compute_the_same(n, dim, monkeypatch):
    from flexsparse.kernels import coarse_attention as kernels

    monkeypatch.setattr(kernels, "is_hopper", lambda x: True)
    generator = torch.Generator().manual_seed(n)
    inputs = [torch.randn(1, 2, n, dim, generator=generator) for _ in range(4)]
    assert_right(with_gradients(kernel, *inputs), *inputs)


@implementations
def test_runs_are_equal_to_the_bit(attend):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 2, 70, 24, generator=generator).to(device) for _ in range(4)]
    runs = [with_gradients(attend, *inputs) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_half_precision_is_computed_in_fp32_under_autocast_too():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 33, 16, generator=generator).to(device).half() for _ in range(3))
    due = coarse_attention(q.float(), k.float(), v.float())
    with torch.autocast(device, dtype=torch.bfloat16):
        found = coarse_attention(q, k, v)
        assert torch.equal(found, due) and found.dtype == torch.float32


def test_the_device_decides(monkeypatch):
    q = torch.randn(1, 1, 4, 16, device=device)
    called = []
    monkeypatch.setattr(coarse, "coarse_attention_twin", lambda *a: called.append(a))
    coarse_attention(q, q, q)
    assert bool(called) == (device == "cpu")


def test_tiles_that_differ_are_refused():
    q = torch.randn(1, 4, 6, 16)
    for shape in (1, 3, 6, 16), (1, 0, 6, 16), (1, 2, 5, 16), (2, 2, 6, 16):
        k = torch.randn(shape)
        for found in (q, k, k), (q, q, k), (q, k, q):
            with pytest.raises(ValueError, match="are .*: pool the same tiles, and give k and v a"):
                coarse_attention(*found)


@linux
def test_the_kernels_are_well_formed_operators():
    from flexsparse.kernels.coarse_attention import coarse_attention, coarse_attention_backward

    q, k, v = (torch.randn(1, 2, 5, 16, device=device, requires_grad=True) for _ in range(3))
    checks = ["test_schema", "test_autograd_registration"]
    if device == "cuda":  # Triton's interpreter cannot run on fake tensors
        checks += ["test_faketensor", "test_aot_dispatch_static"]
    torch.library.opcheck(coarse_attention, (q, k, v, 0.25, False), test_utils=checks)
    with torch.no_grad():
        q, k, v = q.detach(), k.detach(), v.detach()
        arguments = q, q, k, v, *coarse_attention(q, k, v, 0.25, False), 0.25
    torch.library.opcheck(coarse_attention_backward, arguments, test_utils=checks[:1] + checks[2:])
