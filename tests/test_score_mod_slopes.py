"""score_mod on the CPU where it has no slope, and what it captures between forward and backward."""

import pytest
import torch
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask

from flexsparse import VideoTiling, flex_attention, vsa_mask

TILING = VideoTiling((3, 5, 8), (3, 5, 4))  # 60 tokens in 64 rows
MASKS = {
    "causal": lambda b, h, q, kv: q >= kv,
    "strictly causal": lambda b, h, q, kv: q > kv,
}


def problem(length):
    """q, k, v and a slope for each head, with gradients."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, 2, length, 16, generator=generator) for _ in range(3)]
    return [x.requires_grad_() for x in (*drawn, torch.ones(2))]


def mask_of(name, q, k):
    if name == "tiles":
        return vsa_mask(q, k, TILING, top_k=1)
    lengths = q.shape[2], k.shape[2]
    return name and create_block_mask(MASKS[name], None, None, *lengths, "cpu", BLOCK_SIZE=16)


def root(slope):
    """No slope at a score of 0."""
    return lambda score, b, h, q, kv: (score * slope[h]).abs().sqrt()


def power(slope):
    return lambda score, b, h, q, kv: score.abs().pow(slope[h] / 2)


@pytest.mark.parametrize("make", [root, power])
@pytest.mark.parametrize(
    "length, masked",
    [(40, None), (64, "causal"), (40, "strictly causal"), (TILING.padded_tokens, "tiles")],
)
def test_only_pairs_that_are_seen_need_a_slope(make, length, masked):
    """Not those of a block that queries or keys do not fill, of a mask, of a tile's padding."""
    q, k, v, slope = inputs = problem(length)
    mask = mask_of(masked, q, k)
    out = flex_attention(q, k, v, score_mod=make(slope), block_mask=mask)
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), inputs))


def test_where_a_pair_is_hidden_score_mod_needs_no_slope_in_its_indices():
    def by_distance(score, b, h, q, kv):
        return score / (q - kv)

    q, k, v, _ = problem(40)
    mask = mask_of("strictly causal", q, k)
    out = flex_attention(q, k, v, score_mod=by_distance, block_mask=mask)
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), (q, k, v)))


@pytest.mark.parametrize("where", ["score_mod", "mask_mod"])
@pytest.mark.parametrize("trains", [True, False])
def test_what_is_captured_may_not_change_before_the_backward(where, trains):
    q, k, v, slope = problem(40)
    slope.requires_grad_(trains)

    def scaled(score, b, h, q, kv):
        return score * slope.cos()[h]

    def near(b, h, q, kv):
        return q - kv < 8 * slope[h]

    if where == "score_mod":
        out = flex_attention(q, k, v, score_mod=scaled)
    else:
        mask = create_block_mask(near, None, 2, 40, 40, "cpu", BLOCK_SIZE=16)
        out = flex_attention(q, k, v, score_mod=lambda score, *_: 2 * score, block_mask=mask)
    out.sum().backward(retain_graph=True)  # of what is as it was
    with torch.no_grad():
        slope.mul_(3)
    with pytest.raises(RuntimeError, match=r"a tensor \[2\].*changed in place"):
        out.sum().backward()


def test_nothing_is_made_that_nobody_asked_for():
    q, k, v, slope = problem(40)
    for wanted in (AuxRequest(lse=True), AuxRequest(max_scores=True)):
        _, aux = flex_attention(q, k, v, score_mod=root(slope), return_aux=wanted)
        assert (aux.lse is not None, aux.max_scores is not None) == (wanted.lse, wanted.max_scores)


def test_another_default_device_is_no_matter():
    q, k, v, slope = problem(40)
    with torch.device("meta"):
        found = flex_attention(q, k, v, score_mod=root(slope))
    assert torch.equal(found, flex_attention(q, k, v, score_mod=root(slope)))
