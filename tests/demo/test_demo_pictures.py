import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flexsparse import VideoTiling
from train.demo.pictures import (
    Curve,
    busiest_tile,
    draw_chosen_tiles,
    draw_losses,
    spotlight,
    tile_of_pixel,
)

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))


@given(sizes, st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)))
def test_pixels_lie_in_the_tiles_of_the_tiling(video, tile):
    """With one pixel a token, tile_of_pixel is where VideoTiling puts that token in memory."""
    tiling = VideoTiling(video, tile)
    token = torch.arange(1, tiling.tokens + 1.0)[:, None]
    rows = tiling.to_tiles(token)[:, 0].round().long().unflatten(0, (tiling.num_tiles, -1))
    index = tile_of_pixel(video, tiling.grid, tiling.tile).ravel()
    for number, tile_rows in enumerate(rows):
        valid = tile_rows[tile_rows > 0] - 1
        assert np.array_equal(np.sort(valid), np.flatnonzero(index == number))


@settings(max_examples=20)
@given(st.integers(0, 2 * 3 * 4 - 1))
def test_the_busiest_tile_is_where_it_moves(busy):
    clip = np.full((8, 24, 32, 3), 100, dtype=np.uint8)
    index = tile_of_pixel(clip.shape[:3], (2, 3, 4), (4, 8, 8))
    flicker = (index == busy) & (np.arange(8) % 2 == 0)[:, None, None]
    clip[flicker] = 180
    assert busiest_tile(clip, index) == busy


def test_what_is_not_lit_is_dark_and_grey():
    frame = np.random.default_rng(0).integers(80, 256, (6, 8, 3)).astype(np.uint8)
    lit = np.zeros((6, 8), dtype=bool)
    lit[2:4, 3:5] = True
    shown = spotlight(frame, lit)
    assert np.array_equal(shown[lit], frame[lit])
    assert (shown[~lit].std(-1) == 0).all() and (shown[~lit].mean(-1) < frame[~lit].mean(-1)).all()


def dark(path):
    return (np.asarray(Image.open(path).convert("L")).astype(int) < 100).sum()


def assert_even(counts):
    """The third is as far below the second as that is below the first, about."""
    first, second = counts[0] - counts[1], counts[1] - counts[2]
    assert first > 0 and second > 0 and max(first, second) < 1.2 * min(first, second)


@pytest.mark.parametrize("row", ["one", "other"])
def test_chosen_tiles_are_drawn(tmp_path, row):
    """A white clip: the picture of more chosen tiles has as many dark pixels fewer, in each row."""
    clip = np.full((8, 24, 32, 3), 255, dtype=np.uint8)
    counts = []
    for count in (0, 4, 8):
        chosen = {name: np.arange(24) < (count if name == row else 4) for name in ("one", "other")}
        draw_chosen_tiles(tmp_path / "t.png", clip, (2, 3, 4), (4, 8, 8), 5, chosen)
        counts.append(dark(tmp_path / "t.png"))
    assert_even(counts)


def test_losses_are_drawn_for_each_run(tmp_path):
    curve = Curve(losses=[2.0, 1.5, 1.2], seconds=[0.3, 0.2, 0.2], held_out=[(0, 2.0), (3, 1.1)])
    draw_losses(tmp_path / "l.png", {"one": curve, "other": curve, "third": curve})
    assert Image.open(tmp_path / "l.png").size[0] > 1000
