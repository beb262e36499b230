"""Laws of the rules by which query tiles admit key tiles."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import seeds

from flexsparse import Mass, Scaled, Threshold, TopK, VideoTiling
from flexsparse.choice.rules import Rule
from flexsparse.choice.scaled import as_rule, fastvideo_top_k
from flexsparse.choice.selection import select_admitted

ties = st.sampled_from([0.5, 1e-3])  # the coarser the grid of values, the more scores are equal


@st.composite
def scores(draw):
    generator = torch.Generator().manual_seed(draw(seeds))
    batch, heads, rows, n = (draw(st.integers(1, m)) for m in (2, 3, 5, 40))
    step, scale = draw(ties), draw(st.sampled_from([1, 8, 64]))
    return (torch.randn(batch, heads, rows, n, generator=generator) / step).round() * step * scale


@st.composite
def rules(draw, n):
    least = draw(st.integers(1, n))
    bounds = dict(min_tiles=least, max_tiles=draw(st.none() | st.integers(least, n + 3)))
    kind = draw(st.sampled_from([TopK, Threshold, Mass]))
    value = draw(st.integers(1, n)) if kind is not Mass else draw(st.sampled_from([0.1, 0.9, 1.0]))
    return kind(value, **bounds)


@given(st.data(), scores())
def test_what_is_admitted_is_the_best_and_within_bounds(data, s):
    n = s.shape[-1]
    rule = data.draw(rules(n))
    admitted = rule(s)
    count = admitted.sum(-1)
    least, most = rule.bounds(n)
    assert (least <= count).all() and (count <= most).all()
    order = s.sort(dim=-1, descending=True, stable=True).indices  # ties: the lower index first
    rank = order.argsort(-1)
    assert torch.equal(admitted, rank < count[..., None])


@given(st.data(), scores())
def test_lists_and_tile_map_agree(data, s):
    rule = data.draw(rules(s.shape[-1]))
    tiles, counts = rule.select(s)
    assert tiles.dtype == counts.dtype == torch.int32
    assert tiles.shape[-1] == rule.bounds(s.shape[-1])[1]
    for row, count, admitted in zip(tiles.flatten(0, -2), counts.flatten(), rule(s).flatten(0, -2)):
        assert row[:count].tolist() == admitted.nonzero().flatten().tolist()
        assert not row[count:].any()


@given(scores(), st.lists(st.floats(0.01, 1.5), min_size=2, max_size=2))
def test_more_mass_and_more_tiles_admit_no_fewer(s, values):
    low, high = sorted(values)
    for rule, unit in (Mass, 1.0), (Threshold, s.shape[-1]):
        less, more = rule(low * unit)(s), rule(high * unit)(s)
        assert not (less & ~more).any()


@given(scores())
def test_everything_is_admitted_from_the_ends_on(s):
    n = s.shape[-1]
    for rule in Mass(1), Mass(2.0), Threshold(n), TopK(n), Threshold(1e-20, min_tiles=n):
        assert rule(s).all()


@given(scores(), st.sampled_from([0.05, 0.5, 0.9, 0.99]))
def test_mass_is_reached_and_not_without_the_last(s, m):
    weights, admitted = s.double().softmax(-1), Mass(m)(s)
    mass = (weights * admitted).sum(-1)
    last = weights.masked_fill(~admitted, 2).amin(-1)
    rounding = 4 * s.shape[-1] * torch.finfo(torch.float32).eps
    assert (mass >= m - rounding).all()
    assert ((mass - last < m + rounding) | (admitted.sum(-1) == 1)).all()


@given(scores(), st.integers(1, 40))
def test_a_threshold_is_the_stated_one(s, k):
    n = s.shape[-1]
    if k >= n:
        return
    wide = s.double()
    quantile = math.sqrt(2) * torch.erfinv(torch.tensor(1 - 2 * k / n, dtype=torch.float64))
    deviation = wide.std(-1, correction=0, keepdim=True)
    distance = wide - wide.mean(-1, keepdim=True) - deviation * quantile
    clear = distance.abs() > 1e-5 * s.abs().amax(-1, keepdim=True)
    best = wide == wide.amax(-1, keepdim=True)  # admitted in any case
    assert torch.equal(Threshold(k)(s)[clear & ~best], (distance >= 0)[clear & ~best])


def test_a_threshold_admits_about_k_of_normal_scores():
    s = torch.randn(4, 8, 64, 512, generator=torch.Generator().manual_seed(0))
    for k in (8, 36, 256):
        counts = Threshold(k)(s).sum(-1).double()
        assert abs(counts.mean() / k - 1) < 0.02 and counts.std() > 0


def test_equal_scores_are_admitted_alike():
    s = torch.full((1, 1, 3, 37), 0.1)
    assert Threshold(4)(s).all() and Mass(1)(s).all()
    assert Mass(0.5)(s).sum(-1).eq(19).all()
    assert Threshold(4, max_tiles=5)(s)[..., :5].all() and Threshold(4, max_tiles=5)(s).sum() == 15


def test_a_choice_does_not_depend_on_its_neighbours():
    s = torch.randn(3, 2, 5, 20, generator=torch.Generator().manual_seed(0))
    for rule in TopK(4), Threshold(4), Mass(0.7):
        assert torch.equal(rule(s)[1:2], rule(s[1:2]))


def test_nan_stays_visible():
    s = torch.tensor([0.0, torch.nan, 3.0])
    for rule in TopK(1), Threshold(1), Mass(0.5):
        assert rule(s)[1]


def test_the_choice_alone_is_made_of_topk(monkeypatch):
    """Saving it is enough: scores that come out otherwise in a recomputation change nothing."""
    s = torch.randn(2, 3, 4, 30, generator=torch.Generator().manual_seed(0))
    saved = []
    real = torch.Tensor.topk
    monkeypatch.setattr(
        torch.Tensor, "topk", lambda *a, **k: saved.append(real(*a, **k)) or saved[-1]
    )
    first = select_admitted(s, s > 0.5, 1, 20)
    monkeypatch.setattr(torch.Tensor, "topk", lambda *a, **k: saved[0])
    again = select_admitted(s + 1, s > -0.5, 1, 20)
    assert all(torch.equal(a, b) for a, b in zip(first, again))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: TopK(0), "k=0 must be an int of at least 1"),
        (lambda: TopK(2.5), "k=2.5 must be an int"),
        (lambda: Threshold(0), "k=0 must be above 0"),
        (lambda: Mass(-1), "m=-1 must be above 0"),
        (lambda: Mass(0.9, min_tiles=4, max_tiles=3), "min_tiles=4, max_tiles=3"),
        (lambda: Mass(0.9, min_tiles=0), "min_tiles=0"),
        (lambda: as_rule(9, 8), r"top_k=9 must be an int in 1..8"),
        (lambda: as_rule(TopK(9), 8, "kv"), r"kv=TopK.* asks for 9 tiles of 8"),
        (lambda: as_rule(Mass(0.5, min_tiles=9), 8), "asks for 9 tiles of 8"),
        (lambda: Scaled(), "either a sparsity or a top_k"),
        (lambda: Scaled(0.5, 8), "either a sparsity or a top_k"),
        (lambda: Scaled(1.0), r"sparsity=1.0 must be in \[0, 1\)"),
        (lambda: Scaled(top_k=0), "top_k=0 must be an int of at least 1"),
    ],
)
def test_bad_rules_are_named(make, words):
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_rule_is_a_value():
    assert Mass(0.9, min_tiles=4) == Mass(0.9, min_tiles=4) and hash(TopK(3)) == hash(TopK(3))
    assert isinstance(as_rule(3, 8), Rule) and as_rule(3, 8) == TopK(3)


@given(st.data(), scores())
def test_a_tensor_admits_what_its_number_does_within_its_bounds(data, s):
    n = s.shape[-1]
    kind, k = data.draw(st.sampled_from([TopK, Threshold])), data.draw(st.integers(1, n + 2))
    most = data.draw(st.integers(1, n))
    number, tensor = kind(k, max_tiles=most), kind(torch.tensor(k), max_tiles=most)
    assert torch.equal(tensor(s), number(s))
    assert tensor.select(s).tiles.shape[-1] == most


@pytest.mark.parametrize("kind", [TopK, Threshold])
def test_a_new_value_compiles_nothing_where_it_is_a_tensor(kind):
    s, compiled = torch.randn(2, 3, 20, 20), []

    def count(graph, inputs):
        compiled.append(graph)
        return graph.forward

    attend = torch.compile(lambda rule, s: rule(s), backend=count, fullgraph=True)
    k = torch.tensor(0)
    for value in (1, 3, 4, 20):
        k.fill_(value)
        assert torch.equal(attend(kind(k), s), kind(value)(s))
    assert len(compiled) == 1
    values = (2, 3.5, 5.25) if kind is Threshold else (2, 3, 5)
    for value in values:  # each a program of its own
        assert torch.equal(attend(kind(value), s), kind(value)(s))
    symbols = [
        n.meta["example_value"] for g in compiled for n in g.graph.find_nodes(op="placeholder")
    ]
    assert len(compiled) == 1 + len(values) and all(isinstance(x, torch.Tensor) for x in symbols)


def test_a_tensor_of_many_numbers_is_refused():
    for kind in (TopK, Threshold):
        with pytest.raises(ValueError, match=r"shape \(2,\): give one number"):
            kind(torch.tensor([1, 2]))


@given(
    st.integers(1, 4096),
    st.integers(1, 4096),
    st.floats(0, 0.999),
    st.sampled_from([TopK, Threshold]),
)
def test_a_scaled_rule_asks_for_as_much_of_every_video(n, k, sparsity, kind):
    share = as_rule(Scaled(sparsity, rule=kind), n)
    assert isinstance(share, kind) and 1 <= share.k <= n
    assert share.k == 1 or abs(share.k - n * (1 - sparsity)) <= 0.5
    assert as_rule(Scaled(top_k=k, rule=kind), n).k == min(k, n)


@given(st.tuples(*[st.integers(1, 12)] * 3), st.floats(0, 0.99))
def test_fastvideo_takes_the_ceiling_where_we_round(grid, sparsity):
    tiling = VideoTiling(tuple(4 * side for side in grid))
    theirs, n = fastvideo_top_k(sparsity, tiling), tiling.num_tiles
    assert theirs - 1 < (1 - sparsity) * n <= theirs
    assert theirs - Scaled(sparsity=sparsity).at(n).k in (0, 1)


def test_fastvideo_counts_tokens_where_tiles_are_ragged():
    tiling = VideoTiling((21, 30, 52))  # 32,760 tokens are 511.9 tiles full, in 624 tiles
    assert fastvideo_top_k(0.9, tiling) == 52 and fastvideo_top_k(0, tiling) == 512
    with pytest.raises(ValueError, match="give 0 <= sparsity < 1"):
        fastvideo_top_k(1.0, tiling)
