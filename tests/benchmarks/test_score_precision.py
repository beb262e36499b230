"""Laws of emulated products, and the comparison of a choice with the truth by hand."""

import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from laws import seeds

from benchmarks.studies.rounded_scores import PRECISIONS, bf16, cut, tf32
from benchmarks.studies.score_precision import change, choice
from flexsparse import Threshold, TopK
from flexsparse.choice.choose import coarse_scores


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pooled(seed, n=48, dim=128):
    """q and k with a part that all keys share, in fp32."""
    return normal(seed, 1, 2, n, dim), normal(seed + 1, 1, 2, n, dim) + 4 * normal(seed + 2, dim)


@given(seeds)
def test_tf32_keeps_ten_explicit_bits(seed):
    x = normal(seed, 1000) * 10 ** (10 * normal(seed + 1, 1000)).clamp(-30, 30)
    mantissa, exponent = torch.frexp(
        x.double()
    )  # mantissa from a half to 1: 11 bits with the first
    scaled = mantissa.abs() * 2**11
    assert torch.equal(
        tf32(x).double(), x.sign() * torch.ldexp((scaled + 0.5).floor(), exponent - 11)
    )
    assert torch.equal(cut(x).double(), x.sign() * torch.ldexp(scaled.floor(), exponent - 11))


def test_values_of_few_bits_stay():
    few = torch.arange(-2048.0, 2049)
    assert torch.equal(tf32(few), few) and torch.equal(cut(few), few)
    assert torch.equal(bf16(few / 8)[1792:2305], few[1792:2305] / 8)
    half = torch.tensor([2049.0, -2049.0])
    assert tf32(half).tolist() == [2050, -2050] and cut(half).tolist() == [2048, -2048]


@given(seeds)
def test_scores_of_operands_of_few_bits_are_exact(seed):
    q, k = ((16 * normal(s, 1, 2, 20, 64)).round() for s in (seed, seed + 1))
    truth = coarse_scores(q.double(), k.double())
    for name in ("fp32", "tf32x3", "bf16x3", "tf32", "tf32, cut off", "bf16"):
        assert torch.equal(PRECISIONS[name](q, k).double(), truth), name
    assert torch.equal(PRECISIONS["bf16, scores too"](q, k), bf16(truth.float()))


@settings(max_examples=20)
@given(seeds)
def test_three_products_reach_fp32_and_one_does_not(seed):
    q, k = pooled(seed)
    truth = coarse_scores(q.double(), k.double())
    error = {p: (f(q, k) - truth).square().mean().sqrt().item() for p, f in PRECISIONS.items()}
    assert error["tf32x3"] < 2 * error["fp32"]
    assert error["fp32"] < error["bf16x3"] / 4 < error["tf32"] / 64
    assert error["tf32"] < error["tf32, cut off"] and error["tf32"] < error["bf16"] / 4
    assert error["bf16"] < error["bf16, scores too"]


@settings(max_examples=20)
@given(seeds)
def test_queries_times_64_choose_the_same(seed):
    q, k = pooled(seed)
    for name, scores in PRECISIONS.items():
        assert torch.equal(scores(64 * q, k), 64 * scores(q, k)), name


@given(seeds)
def test_a_choice_is_the_rules_own(seed):
    scores = (normal(seed, 2, 3, 20, 20) * 4).round()  # with ties
    for rule in (TopK(5), Threshold(5), Threshold(0.01)):
        assert torch.equal(choice(rule, scores), rule(scores))
        assert torch.equal(choice(rule, scores.double()), rule(scores))


@given(seeds)
def test_the_truth_changes_nothing(seed):
    truth = normal(seed, 1, 2, 20, 20).double()
    for rule in (TopK(5), Threshold(5)):
        same = vars(change(rule, truth, choice(rule, truth), truth))
        assert same.pop("shift") is None and same.pop("shift_error") is None
        assert same == dict.fromkeys(same, 0)


def test_equal_scores_are_ties_and_favour_early_tiles():
    truth = torch.arange(4.0).double().expand(1, 1, 4, 4)
    rule = TopK(1)
    found = change(rule, truth, choice(rule, truth), torch.zeros(1, 1, 4, 4))
    weights = truth[0, 0, 0].softmax(-1)
    assert found.rows == found.tiles == found.ties == 1
    assert found.regret == pytest.approx(3 / math.sqrt(1.25))
    assert found.mass == found.worst_mass == pytest.approx((weights[3] - weights[0]).item())
    assert (found.shift, found.shift_error) == (-0.75, 0)


def test_one_row_of_four_that_chooses_otherwise():
    truth = torch.tensor([4.0, 3, 2, 1, 0, 0, 0, 0]).double().repeat(1, 1, 4, 1)
    scores = truth.clone()
    scores[..., 2, 3] = 3.5  # tile 3 for tile 1
    found = change(TopK(2), truth, choice(TopK(2), truth), scores)
    deviation = truth[0, 0, 0].std(correction=0).item()
    weights = truth[0, 0, 0].softmax(-1)
    assert (found.rows, found.tiles, found.ties, found.shift) == (1 / 4, 1 / 8, 0, None)
    assert found.regret == pytest.approx(2 / deviation)
    assert found.worst_mass == pytest.approx((weights[1] - weights[3]).item())
    assert found.mass == pytest.approx(found.worst_mass / 4)
    assert found.error == pytest.approx(2.5 / deviation / math.sqrt(32))


def test_a_threshold_is_missed_by_the_distance_to_its_line():
    truth = torch.tensor([4.0, 3, 1, 1, 0, 0, 0, 0]).double().expand(1, 1, 1, 8)
    rule = Threshold(2)
    line = truth.mean() + truth.std(correction=0) * NormalDist().inv_cdf(0.75)
    assert 2 < line < 3
    for tile, score, distance in ((1, 0.0, 3 - line), (2, 2.9, line - 1)):
        scores = truth.clone()
        scores[..., tile] = score
        found = change(rule, truth, choice(rule, truth), scores)
        assert (found.rows, found.tiles) == (1, 1 / 4)
        assert found.regret == pytest.approx((distance / truth.std(correction=0)).item())
