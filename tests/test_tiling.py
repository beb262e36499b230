import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import poison, seeds, tilings

from flexsparse import VideoTiling, reference


@given(tilings(), seeds, st.lists(st.integers(1, 3), max_size=2))
def test_round_trip_is_exact(tiling, seed, leading):
    x = torch.randn(*leading, tiling.tokens, 3, generator=torch.Generator().manual_seed(seed))
    tiled = tiling.to_tiles(x)
    assert tiled.shape == (*leading, tiling.padded_tokens, 3)
    assert torch.equal(tiling.from_tiles(tiled), x)
    assert torch.equal(tiling.from_tiles(poison(tiled, tiling)), x)
    assert not tiled[..., ~tiling.valid(), :].any()
    assert tiled[..., tiling.valid(), :].shape[-2] == tiling.tokens


@given(tilings())
def test_sizes_follow_from_the_layout(tiling):
    layout = tiling.layout()
    assert layout.shape == (tiling.num_tiles, tiling.rows)
    tokens = layout[layout >= 0]
    assert torch.equal(tokens.sort().values, torch.arange(tiling.tokens))
    assert torch.equal(tiling.counts(), (layout >= 0).sum(-1).int())
    assert tiling.full_tiles == (tiling.counts() == tiling.rows).sum()
    assert tiling.has_padding == (tiling.padded_tokens > tiling.tokens)
    # valid rows come first, in raster order within the tile
    for tile in layout:
        assert torch.equal(tile[tile >= 0], tile[: (tile >= 0).sum()])
        assert (tile[tile >= 0].diff() > 0).all()


@given(tilings())
def test_every_token_lies_in_the_tile_that_the_oracle_says(tiling):
    of_token = reference.tile_of_token(tiling.video, tiling.tile)
    for tile, tokens in enumerate(tiling.layout()):
        assert (of_token[tokens[tokens >= 0]] == tile).all()


@given(tilings(max_side=5), seeds)
def test_gradients_are_the_inverse_permutation(tiling, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, tiling.tokens, 3, generator=generator).requires_grad_()
    grad = torch.randn(2, tiling.padded_tokens, 3, generator=generator)
    (dx,) = torch.autograd.grad(tiling.to_tiles(x), x, poison(grad, tiling))
    assert torch.equal(dx, tiling.from_tiles(grad))
    y = grad.clone().requires_grad_()
    (dy,) = torch.autograd.grad(tiling.from_tiles(y), y, dx)
    assert torch.equal(dy, tiling.to_tiles(dx))


def test_defaults_and_wan_grids():
    assert VideoTiling((21, 30, 52), (3, 5, 4)).padded_tokens == 34944
    rows = {16: (2, 2, 4), 32: (2, 4, 4), 64: (3, 5, 4), 128: (4, 4, 8), 192: (5, 5, 6)}
    assert {VideoTiling((9, 9, 9), tile).rows: tile for tile in rows.values()} == rows
    assert VideoTiling((2, 8, 8), (4, 4, 4)).tile == (2, 4, 4)
    assert VideoTiling.fit((21, 30, 52)).tile == VideoTiling.fit((21, 45, 80)).tile == (3, 5, 4)
    assert VideoTiling.fit((1, 64, 64)).tile == (1, 8, 8)
    assert hash(VideoTiling((2, 8, 8))) == hash(VideoTiling([2, 8, 8], [4, 4, 4]))


@given(st.tuples(*[st.integers(1, 40)] * 3))
def test_fit_pads_no_more_than_cubes(video):
    fit = VideoTiling.fit(video)
    assert fit.rows == 64
    cubes = VideoTiling(video, (4, 4, 4), rows=64)
    assert fit.padded_tokens <= cubes.padded_tokens


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(video=(4, 0, 4)), "three positive ints"),
        (dict(video=(4, 4)), "three positive ints"),
        (dict(video=(4, 4, 4.0)), "three positive ints"),
        (dict(video=(4, 8, 8), tile=(4, 4, 8), rows=64), "at least 128"),
        (dict(video=(4, 8, 8), rows=72), "multiple of 16"),
    ],
)
def test_bad_sizes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        VideoTiling(**arguments)


def test_wrong_lengths_name_the_fix():
    tiling = VideoTiling((3, 5, 5), (2, 4, 4))
    with pytest.raises(ValueError, match=r"x has 75 rows.*256 in tile-major order.*to_tiles\(x\)"):
        tiling.from_tiles(torch.zeros(75, 2))
    with pytest.raises(ValueError, match=r"x has 256 rows.*75 in raster.*from_tiles\(x\) first"):
        tiling.to_tiles(torch.zeros(256, 2))
    with pytest.raises(ValueError, match="7 rows.*make the tiling for the video"):
        tiling.to_tiles(torch.zeros(7, 2))
    with pytest.raises(ValueError, match="tokens, channels"):
        tiling.to_tiles(torch.zeros(75))
