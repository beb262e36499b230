import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import seeds

from flexsparse import reference
from flexsparse.choice.choose import coarse_scores
from flexsparse.choice.selection import select_top_k, tile_map


@given(st.integers(1, 40), st.data(), seeds, st.sampled_from([0.25, 0.0]))
def test_the_choice_is_exact_and_ties_go_to_the_lower_index(n, data, seed, grid):
    top_k = data.draw(st.integers(1, n))
    scores = torch.randn(2, 3, n, generator=torch.Generator().manual_seed(seed))
    if grid:
        scores = (scores / grid).round() * grid  # many ties, among them 0.0 and -0.0
    selected = select_top_k(scores, top_k)
    assert selected.dtype == torch.int32 and selected.shape == (2, 3, top_k)
    assert (selected.diff() > 0).all()
    chosen = tile_map(selected, n)
    worst = scores.masked_fill(~chosen, torch.inf).amin(-1)
    assert (worst >= scores.masked_fill(chosen, -torch.inf).amax(-1)).all()
    assert torch.equal(chosen, reference.top_k_map(scores, top_k))


def test_infinities_order_and_nan_is_never_hidden():
    scores = torch.tensor([0.0, torch.inf, -torch.inf, torch.nan, 3.0])
    assert select_top_k(scores, 1).tolist() == [3]
    assert select_top_k(scores, 3).tolist() == [1, 3, 4]
    assert select_top_k(-scores, 4).tolist() == [0, 2, 3, 4]


def test_scores_are_fp32_and_scaled():
    q, k = torch.randn(1, 4, 5, 16), torch.randn(1, 2, 5, 16)
    expected = torch.einsum("bhid,bhjd->bhij", q, k.repeat_interleave(2, 1)) / 4
    torch.testing.assert_close(coarse_scores(q, k), expected)
    torch.testing.assert_close(coarse_scores(q, k, scale=0.5), expected * 2)
