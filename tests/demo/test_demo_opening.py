"""The demo's first act: what is counted, and what is drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.evidence.slots import OwnTileVSA
from flexsparse import VideoTiling
from models.attention import VSA
from train.data.copies.clips import RecurringClips
from train.data.copies.floors import copies_in
from train.demo import copies_pictures
from train.demo.copies import found_by, middle_of
from train.demo.copies_pictures import draw_looks, floor
from train.demo.opening import TILE, Opening
from train.demo.pictures import blank_figure, save

CLIPS = RecurringClips(Opening().copies, 4, size=Opening().model.video)
TILING = VideoTiling(CLIPS.grid, TILE)
ONE = VSA(top_k=1, tile=TILE)
TRUTH = copies_in(CLIPS.layout(0), TILING)[middle_of(TILING)] > 0


def test_a_new_model_finds_most_copies_and_every_head_is_counted():
    """Its queries and keys are equal."""
    torch.manual_seed(0)
    found = found_by(Opening().model.build(), CLIPS, TILING, time=0.1)
    assert len(found.shares) == len(found.heads) == Opening().model.layers
    assert all(sum(heads) == 4 for heads in found.heads)
    assert min(found.shares) > 0.8


@pytest.mark.parametrize("slot, layers", [(OwnTileVSA(top_k=1, tile=TILE), 0), (ONE, 2)])
def test_only_layers_that_choose_no_tile_but_their_own_have_no_share(slot, layers):
    model = replace(Opening().model, attention=slot).build()
    with torch.no_grad():
        for block in model.layers.values():
            query, key, _ = block.self_attention.qkv.weight.chunk(3)
            key.copy_(-query)  # whoever chooses chooses others
    assert len(found_by(model, CLIPS, TILING, time=0.1).shares) == layers


@pytest.mark.parametrize("right, wrong", [(0, 0), (1, 0), (1, 1), (3, 1)])
def test_right_wrong_and_overlooked_tiles_have_colours_of_their_own_and_are_counted(
    tmp_path, monkeypatch, right, wrong
):
    figures = []
    monkeypatch.setattr(copies_pictures, "save", lambda *x: (figures.append(x[0]), save(*x)))
    heads = np.zeros(TILING.num_tiles, dtype=int)
    others = np.arange(len(TRUTH)) != middle_of(TILING)
    heads[np.flatnonzero(TRUTH)[:right]] = heads[np.flatnonzero(~TRUTH & others)[:wrong]] = 1
    draw_looks(tmp_path / "looks.png", CLIPS, TILING, heads.tolist())
    title = figures[0].subfigs[0].get_suptitle()
    assert f"at {right + wrong} of the 31 other tiles: {right} of these" in title
    assert title.endswith("of 3 that do") and TRUTH.sum() == 3
    pixels = np.asarray(Image.open(tmp_path / "looks.png").convert("RGB")).reshape(-1, 3)

    def boxes(colour):  # over the clip and enlarged, and a small one in the legend
        return (pixels == colour).all(1).sum() > 1500

    colours = (53, 208, 79), (255, 59, 48), (0, 180, 255), (255, 225, 77)
    assert [boxes(c) for c in colours] == [right > 0, wrong > 0, right < 3, True]


def test_what_a_floor_says_stands_beside_the_curves():
    figure = blank_figure(4, 3)
    axes = figure.subplots()
    floor(axes, 0.5, "the least")
    figure.draw_without_rendering()
    (says,) = axes.texts
    assert says.get_window_extent().x0 >= axes.bbox.x1
