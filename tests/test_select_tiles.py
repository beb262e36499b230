"""The kernel that scores and chooses (in Triton's interpreter without a GPU) and its twin."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import seeds

from flexsparse import Mass, Threshold, TopK
from flexsparse.choice.choose import choose_tiles, coarse_scores, pool_scores
from flexsparse.choice.selection import pack_bits, unpack_bits

if sys.platform != "linux":
    pytest.skip("triton is for Linux", allow_module_level=True)
import triton
import triton.language as tl

from flexsparse.kernels import select_tiles as kernels
from flexsparse.kernels.select_tiles import _split, select_tiles

device = "cuda" if torch.cuda.is_available() else "cpu"


def kernel(q, k, rule, counts=None, query_tiles=1):
    """Bool [B, H, blocks, n]."""
    n = q.shape[2]
    inputs = q.to(device), k.to(device), None if counts is None else counts.to(device)
    how, amount, tensor = rule.fused(n)
    tensor = None if tensor is None else tensor.to(device)
    bits = select_tiles(*inputs, how, amount, tensor, *rule.bounds(n), query_tiles)
    assert bits.shape[-1] == -(-n // 32)
    assert not unpack_bits(bits.cpu(), 32 * bits.shape[-1])[..., n:].any()
    return unpack_bits(bits.cpu(), n)


@st.composite
def means(draw, low=1, high=70):
    """Pooled q [B, H, n, D] and k, seldom of a size that suits a GPU; whole numbers, so that scores
    are exact in fp32 and often equal."""
    generator = torch.Generator().manual_seed(draw(seeds))
    n, kv_heads, group = (
        draw(st.integers(low, high)),
        draw(st.integers(1, 2)),
        draw(st.sampled_from([1, 3])),
    )
    size = draw(st.sampled_from([1, 4, 64 * 4]))
    dim = draw(st.sampled_from([16, 64]))
    q = torch.randint(-size, size + 1, (1, kv_heads * group, n, dim), generator=generator).float()
    k = torch.randint(-2, 3, (1, kv_heads, n, dim), generator=generator).float()
    return q, k


@st.composite
def rules(draw, n):
    least = draw(st.integers(1, n))
    bounds = dict(min_tiles=least, max_tiles=draw(st.none() | st.integers(least, n + 3)))
    kind = draw(st.sampled_from([TopK, Threshold, Mass]))
    if kind is Mass:
        return Mass(draw(st.sampled_from([0.1, 0.9, 1.0])), **bounds)
    k = draw(st.integers(1, n + 1))
    return kind(torch.tensor(k) if draw(st.booleans()) else min(k, n), **bounds)


@settings(max_examples=8)
@given(means(), st.data())
def test_it_chooses_what_plain_pytorch_does_ties_included(qk, data):
    q, k = qk
    n = q.shape[2]
    rule = data.draw(rules(n))
    query_tiles = min(n, data.draw(st.sampled_from([1, 1, 2, 4])))
    counts = None
    if data.draw(st.booleans()):  # each block's sum is a power of two: dividing by it is exact
        counts = torch.tensor([3, 1, 2, 2]).repeat(-(-n // 4))[:n].int()
        counts[n // query_tiles * query_tiles :] = 1
    scores = pool_scores(coarse_scores(q, k), counts, query_tiles)
    found = kernel(q, k, rule, counts, query_tiles)
    assert torch.equal(found, rule(scores))
    assert torch.equal(found, kernel(q, k, rule, counts, query_tiles))  # bit for bit, again


@settings(max_examples=10)
@given(st.integers(2, 70), seeds, st.sampled_from([1.0, 64.0]), st.sampled_from([24, 80]))
def test_it_chooses_the_best_but_for_what_rounding_decides(n, seed, scale, dim):
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, 2, n, dim, generator=generator) for _ in range(2))
    q *= scale
    exact = coarse_scores(q.double(), k.double())
    rounding = 2 * (coarse_scores(q, k) - exact).abs().amax()
    chosen = kernel(q, k, TopK(n // 2))
    assert (chosen.sum(-1) == n // 2).all()
    worst = exact.masked_fill(~chosen, torch.inf).amin(-1)
    best = exact.masked_fill(chosen, -torch.inf).amax(-1)
    assert (worst >= best - rounding).all()


@pytest.mark.parametrize("n", [1, 31, 32, 33, 1000, 4096])
def test_any_number_of_tiles(n):
    """Up to 4,096, in rows of many tiles that choose together."""
    generator = torch.Generator().manual_seed(n)
    q, k = (torch.randint(-4, 5, (1, 1, n, 16), generator=generator).float() for _ in range(2))
    query_tiles = max(1, n // 16)
    counts = torch.ones(n, dtype=torch.int32)
    scores = pool_scores(coarse_scores(q, k), counts, query_tiles)
    for rule in TopK(max(1, n // 8)), TopK(n), Threshold(max(1, n / 8)), Mass(0.9):
        assert torch.equal(kernel(q, k, rule, None, query_tiles), rule(scores))


@pytest.mark.skipif(device == "cuda", reason="a GPU has its own blocks")
@pytest.mark.parametrize("n, dim, query_tiles", [(131, 16, 1), (260, 64, 2), (40, 256, 4)])
def test_blocks_of_hopper_choose_the_same(n, dim, query_tiles, monkeypatch):
    monkeypatch.setattr(kernels, "is_hopper", lambda x: True)
    generator = torch.Generator().manual_seed(n)
    q, k = (torch.randint(-4, 5, (1, 2, n, dim), generator=generator).float() for _ in range(2))
    scores = pool_scores(coarse_scores(q, k), None, query_tiles)
    assert torch.equal(kernel(q, k, TopK(n // 8), None, query_tiles), TopK(n // 8)(scores))


@triton.jit
def _split_all(x, high, low, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    b_high, b_low = _split(tl.load(x + o))
    tl.store(high + o, b_high)
    tl.store(low + o, b_low)


def test_two_parts_of_tf32_are_a_number_but_for_a_bit():
    """The interpreter, whose products are of fp32, shows it nowhere else."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-60, 60, (4096,), generator=generator)
    x = torch.ldexp(torch.randn(4096, generator=generator), exponents).to(device)
    high, low = torch.empty_like(x), torch.empty_like(x)
    _split_all[(1,)](x, high, low, BLOCK=4096)
    cut = lambda x: (x.view(torch.int32) & -0x2000).view(torch.float32)  # noqa: E731
    assert torch.equal(cut(high), high)
    assert torch.equal(high.double() + low.double(), x.double())
    assert (low.abs() <= x.abs() * 2.0**-11).all()
    assert ((low - cut(low)).abs() <= x.abs() * 2.0**-22).all()


def test_infinities_order_and_nan_stays_visible():
    k = torch.eye(16)[None, None]
    q = torch.zeros(1, 1, 16, 16)
    row = torch.tensor([0.0, torch.inf, -1.0, 5.0, 3.0] + [-2.0] * 11)
    k[..., 0] = row
    q[..., 0] = 1.0
    assert kernel(q, k, TopK(1))[0, 0, 0].nonzero().flatten().tolist() == [1]
    assert kernel(q, k, TopK(3))[0, 0, 0].nonzero().flatten().tolist() == [1, 3, 4]
    for bits in 0x7FC00000, 0x7FFFFFFF, -1:  # all ones are what a GPU makes
        k[0, 0, 2, 0] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
        for rule in TopK(1), Threshold(1), Mass(0.5):
            assert kernel(q, k, rule)[0, 0, :, 2].all()
    q[0, 0, 1] = k[0, 0, 2, 0]  # a query that is nothing else, whatever it meets
    k[..., 0] = torch.where(row.isinf(), 0.0, row)
    assert kernel(q, k, TopK(2))[0, 0, 1].nonzero().flatten().tolist() == [0, 1]


def test_one_batch_of_keys_serves_all_and_heads_must_fit():
    q, k = torch.randn(2, 2, 8, 16).round(), torch.randn(1, 2, 8, 16).round()
    assert torch.equal(kernel(q, k, TopK(3)), TopK(3)(coarse_scores(q, k)))
    with pytest.raises(ValueError, match="q has 4 heads, k 3: give k a divisor"):
        choose_tiles(torch.randn(1, 4, 8, 16), torch.randn(1, 3, 8, 16), TopK(3))


@pytest.mark.parametrize("k", [2.5, 0.2, -3, 99])
def test_a_tensor_of_any_number_is_kept_within_the_bounds(k):
    rule = TopK(torch.tensor(k), max_tiles=6)
    q = torch.randn(1, 2, 8, 16).round()
    assert torch.equal(kernel(q, q, rule), rule(coarse_scores(q, q)))


def test_plain_pytorch_refuses_infinities():
    q = torch.full((1, 2, 3, 16), 1e25)
    with pytest.raises(ValueError, match=r"18 of 18 scores between tiles are infinite, .* head 0"):
        choose_tiles(q, q, TopK(1))


def test_a_rule_of_ones_own_is_never_taken_for_another():
    class Worst(TopK):
        def select(self, scores):
            return TopK(self.k).select(-scores)

    assert Worst(2).fused(8) is None and TopK(2).fused(8) is not None
    q, k = torch.randn(2, 1, 1, 8, 16)
    worst = unpack_bits(choose_tiles(q, k, Worst(2)), 8)
    assert torch.equal(worst, TopK(2)(-coarse_scores(q, k)))


@given(st.integers(1, 100), seeds)
def test_bits_hold_a_map(n, seed):
    chosen = torch.rand(2, 3, n, generator=torch.Generator().manual_seed(seed)) < 0.5
    bits = pack_bits(chosen)
    assert bits.dtype == torch.int32 and bits.shape == (2, 3, -(-n // 32))
    assert torch.equal(unpack_bits(bits, n), chosen)
    for place, word in enumerate(bits[0, 0].tolist()):
        own = chosen[0, 0, 32 * place :][:32].tolist()
        assert word % 2**32 == sum(2**i for i, bit in enumerate(own) if bit)


def test_the_kernel_is_a_well_formed_operator():
    q, k = torch.randn(2, 1, 2, 9, 16, device=device)
    checks = ["test_schema", "test_autograd_registration"]
    if device == "cuda":  # Triton's interpreter cannot run on fake tensors
        checks += ["test_faketensor", "test_aot_dispatch_static"]
    for amount in (None, torch.tensor(2.0, dtype=torch.float64, device=device)):
        arguments = q, k, None, "top", 3.0, amount, 1, 4, 1
        torch.library.opcheck(select_tiles, arguments, test_utils=checks)
