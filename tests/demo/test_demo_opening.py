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
from train.demo.opening import TILE, Opening
from train.demo.recall import found_by, middle_of
from train.demo.recall_pictures import draw_looks

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


@pytest.mark.parametrize(
    "looks, green, red, yellow", [((), 0, 0, 1), ((True,), 1, 0, 1), ((True, False), 1, 1, 1)]
)
def test_right_and_wrong_tiles_have_colours_of_their_own(tmp_path, looks, green, red, yellow):
    heads = np.zeros(TILING.num_tiles, dtype=int)
    for right in looks:
        others = np.flatnonzero((right == TRUTH) & (np.arange(len(TRUTH)) != middle_of(TILING)))
        heads[others[0]] = 1
    draw_looks(tmp_path / "looks.png", CLIPS, TILING, heads.tolist())
    pixels = np.asarray(Image.open(tmp_path / "looks.png").convert("RGB")).reshape(-1, 3)

    def boxes(colour):  # over the clip and enlarged, and a small one in the legend
        return (pixels == colour).all(1).sum() > 1500

    assert [boxes(c) for c in ((53, 208, 79), (255, 59, 48), (255, 225, 77))] == [
        bool(green),
        bool(red),
        bool(yellow),
    ]
