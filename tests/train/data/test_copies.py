"""Content that recurs: where it lies, what it is, and the least loss of whoever sees so much."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flexsparse import VideoTiling
from models.video_dit import debug
from train.data import VideoDataLoader
from train.data.copies.clips import RecurringClips, drawn
from train.data.copies.floors import copies_in, floors, tell_most, tiles_of
from train.data.copies.layouts import Copies, layout

GRID = 8, 4, 8
PLACES = [
    Copies(where="loop", copies=2),
    Copies(where="pan", speed=3),
    Copies(where="shuffle", copies=2, cell=(2, 2, 2), offset=(1, 0, 1), share=0.5),
    Copies(where="objects", copies=2, cell=(2, 2, 2), share=0.2),
]
where = pytest.mark.parametrize("copies", PLACES, ids=lambda copies: copies.where)
SIZE = 8, 16, 32


def clips(copies, **options):
    return RecurringClips(copies, 64, size=SIZE, **options)


@where
def test_tokens_of_one_number_show_one_content_and_others_another(copies):
    source = clips(copies)
    video, ids = source[3]["video"], source.layout(3).ids
    t, h, w = GRID
    tokens = video.unflatten(1, (t, 1)).unflatten(3, (h, 4)).unflatten(5, (w, 4))
    tokens = tokens.permute(1, 3, 5, 0, 2, 4, 6).reshape(t * h * w, -1)
    alike = (tokens[:, None] == tokens).all(-1)
    assert torch.equal(alike, torch.from_numpy(ids.reshape(-1)[:, None] == ids.reshape(-1)))
    assert torch.equal(source[3]["video"], video) and not torch.equal(source[4]["video"], video)
    assert torch.equal(clips(copies, first=3)[0]["video"], video)


def test_where_content_lies():
    rng = np.random.default_rng(0)
    loop = layout(Copies(copies=4), GRID, rng).ids
    assert np.array_equal(loop[:2], loop[6:]) and len(np.unique(loop)) == 2 * 4 * 8
    pan = layout(Copies(where="pan", speed=3), GRID, rng).ids
    assert np.array_equal(pan[0, :, 3:], pan[1, :, :-3])
    assert np.array_equal(pan[3], pan[5]) and len(np.unique(pan[4])) == 32
    cells = Copies(where="shuffle", copies=2, cell=(2, 2, 2), share=0.5)
    shuffled = layout(cells, GRID, rng)
    counts = np.bincount(np.unique(shuffled.ids, return_counts=True)[1])
    assert counts[2] == 8 * 8 and counts[1] == 16 * 8
    off = layout(replace(cells, offset=(1, 0, 1)), GRID, np.random.default_rng(5)).ids
    on = layout(cells, GRID, np.random.default_rng(5)).ids
    assert np.array_equal(np.roll(off, (-1, 0, -1), (0, 1, 2)), on)
    objects = layout(PLACES[3], GRID, rng)
    counts = np.unique(objects.ids, return_counts=True)[1]
    assert (counts == 2).sum() == 3 * 8 and counts.max() == 2


@where
@pytest.mark.parametrize("alike", [0.0, 1.5])
def test_content_has_the_covariance_that_is_said(copies, alike):
    source = RecurringClips(replace(copies, alike=alike), 400, size=SIZE)
    x = torch.stack([source[i]["video"] for i in range(400)])
    assert abs(x.mean()) < 0.01 and abs(x.var() - 1) < 0.02
    if copies.where in ("loop", "pan"):  # whose first frame is of one piece
        pixels = x[:, :, 0, ::4, ::4].double()
        for apart in (1, 2):
            found = (pixels[..., apart:] * pixels[..., :-apart]).mean()
            assert abs(found - (math.exp(-apart / alike) if alike else 0)) < 0.03


times = st.floats(0.1, 0.95)


@settings(max_examples=20)
@given(times, st.sampled_from([1, 2, 4, 8]))
def test_floors_of_tokens_by_themselves_have_a_closed_form(t, copies):
    """Of n equally noisy copies the mean has a noise of 1 / n of the variance."""
    source = clips(Copies(copies=copies))
    tiling = VideoTiling(GRID, (1, 2, 2))
    found = floors(source.copies, source.layout(0), tiling, [t], others=(1, copies - 1, 20))

    def due(n):
        return 1 / (1 + n * ((1 - t) / t) ** 2) / t**2

    assert found.patch == pytest.approx(due(1)) and found.tile == pytest.approx(due(1))
    assert found.everything == pytest.approx(due(copies))
    assert found.others[1] == pytest.approx(due(min(2, copies)))
    assert found.others[20] == pytest.approx(due(copies))


@where
@pytest.mark.parametrize("alike", [0.0, 2.0])
def test_who_sees_more_can_lose_less(copies, alike):
    source = clips(replace(copies, alike=alike))
    tiling = VideoTiling(GRID, (2, 2, 4))
    found = floors(source.copies, source.layout(0), tiling, [0.3, 0.7], others=(0, 2, 15))
    assert found.others[0] == pytest.approx(found.tile)
    assert found.others[15] == pytest.approx(found.everything)
    order = [found.patch, found.tile, found.others[2], found.everything]
    assert order == sorted(order, reverse=True) and order[-1] < 0.99 * order[1]


OVERLAP = Copies(where="shuffle", copies=4, cell=(2, 2, 4), offset=(1, 1, 2))


@pytest.mark.parametrize("copies", [*PLACES, OVERLAP])
def test_the_other_tiles_are_those_that_tell_most(copies):
    """Beside those before them: of copies that overlap, not those that tell most by themselves."""
    tiling, noise = VideoTiling(GRID, (2, 2, 4)), 0.2
    place, tiles = clips(copies).layout(0), tiles_of(tiling)
    ids = place.ids.reshape(-1)

    def left(own, others):
        seen = np.concatenate([tiles[own], *(tiles[j] for j in others)])
        known = (ids[tiles[own]][:, None] == ids[seen]).sum(1)
        return (1 / (1 + known / noise)).sum()

    for own, found in enumerate(tell_most(place, tiling, 3, noise)):
        rest = set(range(len(tiles))) - {own}
        for i, _ in enumerate(found):
            due = [left(own, [*found[:i], j]) for j in rest - set(found[:i])]
            assert left(own, found[: i + 1]) == pytest.approx(min(due))
        assert len({own, *found}) == 4


@pytest.mark.parametrize("copies", [PLACES[0], PLACES[2]], ids=lambda copies: copies.where)
def test_a_linear_model_that_is_trained_ends_at_the_floor(copies):
    """Of a tile and another, by least squares in fp64 on 20,000 channels of one layout."""
    copies = replace(copies, alike=1.5)
    source, tiling, t = clips(copies), VideoTiling(GRID, (2, 2, 4)), 0.6
    place, tiles = source.layout(0), tiles_of(tiling)
    chosen = np.argsort(-copies_in(place, tiling), axis=1, kind="stable")[:, 0]
    rng = np.random.default_rng(0)
    width = 20_000
    blocks = [drawn(count, size, width, copies.alike, rng) for count, size in place.blocks]
    x0 = torch.from_numpy(np.concatenate(blocks)[place.ids.reshape(-1)]).double()
    noise = torch.from_numpy(rng.standard_normal(x0.shape))
    x, velocity = (1 - t) * x0 + t * noise, noise - x0
    losses, half = [], width // 2
    for tile, other in zip(tiles, chosen):
        seen = x[np.concatenate([tile, tiles[other]])].T
        weights = torch.linalg.lstsq(seen[:half], velocity[tile].T[:half]).solution
        wrong = seen[half:] @ weights - velocity[tile].T[half:]
        losses.append(wrong.square().mean().item())
    due = floors(copies, place, tiling, [t], others=(1,)).others[1]
    assert np.mean(losses) == pytest.approx(due, rel=0.01)


def test_truth_is_where_copies_are():
    tiling = VideoTiling(GRID, (2, 2, 4))
    loop = copies_in(clips(Copies(copies=4)).layout(0), tiling)
    assert set(np.unique(loop)) == {0.0, 1.0} and (loop.sum(1) == 3).all()
    assert np.array_equal(loop, loop.T)
    cells = Copies(where="shuffle", copies=2, cell=(2, 2, 4))
    shuffled = copies_in(clips(cells).layout(0), tiling)
    assert (shuffled.sum(1) == 1).all()
    off = copies_in(clips(replace(cells, offset=(1, 1, 2))).layout(0), tiling)
    assert 0 < off.max() < 1


def test_what_does_not_come_out_even_is_named():
    for wrong, message in (
        (dict(copies=3), "8 frames are not 3 times"),
        (dict(where="shuffle", cell=(3, 2, 2)), "do not divide"),
        (dict(where="shuffle", cell=(4, 4, 4), copies=8), "none can be at 8 places"),
        (dict(where="objects", share=0.01), "smaller objects"),
        (dict(where="objects", cell=(2, 2, 2), share=1.0), "no place is left"),
        (dict(patch=(3, 4, 4)), "does not divide the clip's"),
    ):
        with pytest.raises(ValueError, match=message):
            clips(Copies(**wrong))
    for wrong in (dict(where="ring"), dict(copies=0), dict(share=0.0), dict(alike=-1.0)):
        with pytest.raises(ValueError):
            Copies(**wrong)


def test_a_loader_gives_them_and_other_ones_for_validation():
    options = dict(source="copies", num_frames=8, height=16, width=32)
    config = VideoDataLoader.Config(**options, copies=PLACES[0])
    train, held_out = (next(iter(config.build(split=s))) for s in ("train", "validation"))
    assert train["video"].dtype == torch.float32 and train["video"].shape == (1, 3, *SIZE)
    assert not torch.equal(train["video"], held_out["video"])
    loop = held_out["video"]
    assert torch.equal(loop[:, :, :4], loop[:, :, 4:]) and loop.abs().max() > 2
    with pytest.raises(ValueError, match="leave buckets out"):
        VideoDataLoader.Config(**options, buckets=((8, 16, 32),)).build()


def test_mimetic_queries_are_keys():
    model = debug(mimetic=True).build()
    for block in model.layers.values():
        query, key, value = block.self_attention.qkv.weight.chunk(3)
        assert torch.equal(query, key) and not torch.equal(key, value)
    query, key, _ = debug().build().layers["0"].self_attention.qkv.weight.chunk(3)
    assert not torch.equal(query, key)
