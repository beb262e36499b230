"""Tensors that choose tiles as a video does, statistics of tile maps, and the order of blocks."""

import pytest
import torch

from benchmarks.studies.selections import evenness, imbalance, launch_costs, makespan
from benchmarks.video_like import video_like
from flexsparse import Threshold, TopK, VideoTiling
from flexsparse.vsa import vsa_tile_map

RAGGED = VideoTiling((9, 18, 22), (3, 5, 4))
TILING = VideoTiling((16, 24, 24))


def test_video_like_is_tile_major_with_zeros_in_padding():
    for x in video_like(RAGGED, 3, 16, batch=2, dtype=torch.bfloat16):
        assert x.shape == (2, 3, RAGGED.padded_tokens, 16) and x.dtype == torch.bfloat16
        valid = RAGGED.valid()
        assert not x[:, :, ~valid].any()
        assert x[:, :, valid].any(-1).all()


def test_video_like_depends_on_its_seed_alone():
    torch.manual_seed(0)
    first = video_like(RAGGED, 2, 16, seed=1, batch=2)
    torch.manual_seed(1)
    again, other = video_like(RAGGED, 2, 16, seed=1, batch=2), video_like(RAGGED, 2, 16, seed=2)
    for x, y, z in zip(first, again, other):
        assert torch.equal(x, y)
        assert not torch.equal(x[:1], z)
        assert not torch.equal(x[0], x[1]), "clips of a batch differ"
        assert not torch.equal(x[:, 0], x[:, 1]), "heads differ"


def test_video_like_has_the_scale_of_normalised_queries_and_keys():
    q, k, _ = video_like(TILING, 4, 64)
    for x in (q, k):
        assert 0.8 < x.square().mean().sqrt() < 1.2
    logits = q[:, :, ::16] @ k[:, :, ::16].mT / 8
    assert 1.2 < logits.std() < 4


def test_video_like_chooses_less_evenly_than_white_noise():
    q, k, _ = video_like(TILING, 4, 64)
    noise = torch.Generator().manual_seed(0)
    white = [torch.randn(q.shape, generator=noise) for _ in range(2)]
    top_k = TILING.num_tiles // 8
    maps = [vsa_tile_map(*x, TILING, top_k=TopK(top_k)) for x in ((q, k), white)]
    ours, theirs = map(evenness, maps)
    assert ours.gini > 2 * theirs.gini
    assert ours.max_over_mean > 1.5 * theirs.max_over_mean
    rows = [vsa_tile_map(*x, TILING, top_k=Threshold(top_k)).sum(-1) for x in ((q, k), white)]
    ours, theirs = (x.double().std() for x in rows)
    assert ours > 1.2 * theirs


def test_evenness_of_a_map_by_hand():
    columns = torch.tensor([2, 0, 4, 2])
    by_hand = torch.arange(4)[:, None] < columns
    found = evenness(by_hand[None, None])
    assert found.max_over_mean == 2
    assert found.p99_over_mean == pytest.approx((2 + 0.97 * 2) / 2)  # between the two longest
    assert found.gini == pytest.approx(12 / (4 * 4 * 2))
    assert found.unchosen == 0.25
    even = evenness(torch.ones(1, 1, 4, 4))
    assert (even.max_over_mean, even.gini, even.unchosen) == (1, 0, 0)
    assert evenness(torch.stack([by_hand, by_hand * 0 + 1])[None]).max_over_mean == 1.5


def test_blocks_start_by_tile_then_batch_then_head():
    """Key tiles before query tiles; four products for a pair here, three there."""
    tile_map = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    tile_map[0, 0] = torch.tensor([[1, 1], [0, 1]])
    tile_map[1, 0, 0, 0] = tile_map[0, 1, 1, 0] = True
    expected = [[4, 8, 6, 3], [4, 0, 3, 0], [4, 0, 0, 3], [0, 0, 0, 0]]  # (b, h) 00, 10, 01, 11
    assert launch_costs(tile_map) == sum(expected, [])


def test_makespan_by_hand():
    """3 | 1 2 2: the last block waits for the slot that is free first."""
    assert makespan([3, 1, 2, 2], 2) == 5
    assert makespan([3, 2, 2, 1], 2) == 4
    assert makespan([3, 1], 4) == 3


def test_a_long_column_that_comes_last_starts_sooner_longest_first():
    tile_map = torch.eye(8, dtype=torch.bool)[None, None]
    tile_map[..., -1] = True
    found = imbalance(tile_map, 4)
    # products: 7 x 4, 32, 7 x 6, 3 = 105; the column starts at 4, and ends at 36
    assert found.launch_order == pytest.approx(36 / (105 / 4))
    assert found.longest_first == found.bound == pytest.approx(32 / (105 / 4))
    assert found.gain == pytest.approx(100 * (1 - 32 / 36))
    even = imbalance(torch.ones(1, 2, 4, 4), 2)
    assert even.launch_order == even.longest_first == even.bound == 1 and even.gain == 0
