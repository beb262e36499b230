"""Which size a video gets, and the order in which batches of several sizes come."""

import itertools
import math
import os
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from train.data import ClipStream, VideoDataLoader, VideoFolder
from train.data.order.buckets import best_length, best_shape

SIZES = ((2, 32, 48), (2, 48, 32), (5, 32, 48))
sides = st.integers(8, 200)
even = st.sampled_from([16, 24, 32, 48, 64, 96])  # so that several have one ratio
sizes = st.lists(st.tuples(st.integers(1, 9), even, even), min_size=1, max_size=9, unique=True)
small = st.integers(1, 3)


@given(sizes, sides, sides)
@example([(1, 32, 64), (1, 16, 32), (1, 48, 96)], 8, 15)
@example([(1, 32, 64), (1, 16, 32), (1, 48, 96)], 40, 90)
@example([(1, 16, 32), (1, 32, 64), (1, 48, 96)], 32, 64)
def test_the_shape_is_of_the_nearest_ratio_and_largest_without_enlarging(sizes, height, width):
    found = best_shape(sizes, height, width)
    shapes = {(h, w) for _, h, w in sizes}
    assert found in shapes

    def cropped(shape):  # the share of the picture that scaling to cover it leaves out
        scale = max(shape[0] / height, shape[1] / width)
        return 1 - shape[0] * shape[1] / (scale**2 * height * width)

    assert cropped(found) <= min(map(cropped, shapes)) + 1e-5
    rivals = [s for s in shapes if abs(cropped(s) - cropped(found)) < 1e-9 and s != found]
    for h, w in rivals:
        fits, larger = h <= height and w <= width, h * w - math.prod(found)
        ours = found[0] <= height and found[1] <= width
        assert not (fits and larger > 0) if ours else not fits and larger >= 0


@given(st.sets(st.integers(1, 9), min_size=1), sizes, st.integers(1, 11))
def test_the_length_is_the_longest_that_there_are_frames_for(lengths, others, frames):
    shape = (32, 80)
    sizes = [*((t, *shape) for t in lengths), *others]
    found = best_length(sizes, shape, frames)
    assert found in lengths
    if found > frames:
        assert found == min(lengths)
    else:
        assert not [t for t in lengths if found < t <= frames]


@st.composite
def bucketed(draw):
    """Numbers of clips in each bucket, ranks, clips on each, and how often they make up a group."""
    counts = draw(st.lists(st.integers(1, 9), min_size=2, max_size=4))
    return counts, draw(small), draw(small), draw(small)


def indices_of(counts):
    borders = list(itertools.accumulate(counts, initial=0))
    return [range(a, b) for a, b in itertools.pairwise(borders)]


def streams(counts, world, batch, group, **options):
    """One for each rank; a clip is its own number."""
    buckets = indices_of(counts)
    total = range(sum(counts))
    return [
        ClipStream(
            total,
            batch_size=batch,
            rank=rank,
            world_size=world,
            buckets=buckets,
            group=group,
            **options,
        )
        for rank in range(world)
    ]


def take(stream, n):
    return list(itertools.islice(stream, n))


def steps_of(shares, batch):
    """What all ranks together get, step by step."""
    count = len(shares[0]) // batch
    return [[x for s in shares for x in s[k * batch : (k + 1) * batch]] for k in range(count)]


@given(bucketed(), st.integers(0, 99), st.booleans())
def test_all_ranks_have_one_size_at_a_time_and_no_clip_is_favoured(drawn, seed, shuffle):
    counts, world, batch, times = drawn
    group = world * batch * times
    rounds = 3
    due = [-(-n // group) for n in counts]
    shares = [
        take(s, rounds * sum(due) * group // world)
        for s in streams(counts, world, batch, group, seed=seed, shuffle=shuffle)
    ]
    buckets = indices_of(counts)
    of = {clip: b for b, bucket in enumerate(buckets) for clip in bucket}
    flat = [clip for step in steps_of(shares, batch) for clip in step]
    groups = [flat[i : i + group] for i in range(0, len(flat), group)]
    labels = [{of[clip] for clip in clips} for clips in groups]
    assert all(len(label) == 1 for label in labels)
    seen = Counter(flat)
    for bucket in buckets:
        often = [seen[clip] for clip in bucket]
        assert max(often) - min(often) <= 1 and min(often) >= rounds
    for r in range(rounds):
        mine = labels[r * sum(due) : (r + 1) * sum(due)]
        assert [mine.count({b}) for b in range(len(counts))] == due


def by_workers(stream, workers, batches):
    """What a DataLoader with so many workers collects: a batch from each in turn."""
    size, shares = stream.batch_size, []
    for worker in range(workers):
        info = SimpleNamespace(id=worker, num_workers=workers)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("train.data.order.stream.get_worker_info", lambda info=info: info)
            shares.append(take(stream, batches * size))
    turns = [shares[k % workers][k // workers * size :][:size] for k in range(batches)]
    return [clip for batch in turns for clip in batch]


@given(bucketed(), st.integers(0, 9), small, st.integers(0, 4), small)
def test_any_number_of_ranks_and_workers_goes_on_with_the_same_order(
    drawn, groups, other_world, workers, seed
):
    """1, 2 and 4 processes resume each other's runs, wherever they stopped."""
    counts, world, batch, times = drawn
    group = 4 * world * batch * times
    assume(group % other_world == 0)
    (alone,) = streams(counts, 1, 1, group, seed=seed)
    wanted = take(alone, (groups + 2) * group)[groups * group :]
    for ranks, size in ((world, batch), (other_world, group // other_world), (4, world * batch)):
        shares = streams(counts, ranks, size, group, seed=seed)
        got = []
        for share in shares:
            share.start = groups * group
            each = 2 * group // ranks
            got.append(by_workers(share, workers, each // size) if workers else take(share, each))
        assert [clip for step in steps_of(got, size) for clip in step] == wanted


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(workers):
    (stream, _) = streams([7, 4, 5], 2, 2, 8, seed=3)
    alone = take(stream, 24)
    loaded = DataLoader(stream, batch_size=2, num_workers=workers)
    assert torch.cat(take(loaded, 12)).tolist() == alone


def test_one_size_is_the_plain_order():
    plain = take(ClipStream(range(11), batch_size=2, seed=4), 30)
    assert take(ClipStream(range(11), batch_size=2, seed=4, buckets=[range(11), []]), 30) == plain
    epochs = [np.random.default_rng((4, e)).permutation(11) for e in range(3)]
    assert plain == np.concatenate(epochs).tolist()[:30]


def test_sizes_are_mixed_and_anew_in_each_round():
    (stream,) = streams([40, 40], 1, 2, 2)
    labels = [clip // 40 for clip in take(stream, 160)[::2]]
    first, second = labels[:40], labels[40:]
    assert first != second and first != sorted(first) and sum(first) == sum(second) == 20
    (stream,) = streams([40, 10], 1, 2, 2, shuffle=False)
    labels = [clip // 40 for clip in take(stream, 50)[::2]]
    assert labels == 5 * [0, 0, 1, 0, 0]


def test_seeds_mix_the_sizes_differently():
    (first,), (other,) = (streams([40, 40], 1, 2, 2, seed=seed) for seed in (0, 1))
    labels = [[clip // 40 for clip in take(stream, 80)] for stream in (first, other)]
    assert labels[0] != labels[1]


def test_groups_that_ranks_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="6 clips of one size in a row .* 2 clips .* of 2 ranks"):
        streams([7, 4], 2, 2, 6)


def digits(**options):
    return VideoDataLoader.Config(source="digits", buckets=SIZES, seed=3, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_several_sizes_resume_on_other_ranks(workers):
    config = digits(num_workers=workers)
    alone = take(config.build(local_batch_size=4), 24)
    found = {tuple(batch["video"].shape[2:]) for batch in alone}
    assert found == set(SIZES)
    first = [
        config.build(dp_world_size=2, dp_rank=r, local_batch_size=1, global_batch_size=4)
        for r in range(2)
    ]
    for wanted in alone[:4]:  # in two passes each
        parts = [take(loader, 1)[0]["video"] for _ in range(2) for loader in first]
        assert torch.equal(torch.cat(parts), wanted["video"])
    state = first[0].state_dict()
    assert state == first[1].state_dict()
    for ranks in (1, 4):
        again = [
            config.build(
                dp_world_size=ranks,
                dp_rank=r,
                local_batch_size=4 // ranks,
                global_batch_size=4,
            )
            for r in range(ranks)
        ]
        for loader in again:
            loader.load_state_dict(state)
        shares = [take(loader, 5) for loader in again]
        for step, wanted in zip(zip(*shares, strict=True), alone[4:9], strict=True):
            for key in ("video", "context"):
                assert torch.equal(torch.cat([batch[key] for batch in step]), wanted[key])


def test_validation_has_every_size_in_turn():
    sizes = dict(local_batch_size=3, global_batch_size=12)  # of which training's steps are made
    loader = digits().build(**sizes, split="validation")
    batches = list(loader)
    assert len(batches) == len(loader) == sum(-(-n // 3) for n in (22, 21, 21))
    assert {tuple(b["video"].shape[2:]) for b in batches[:3]} == set(SIZES)
    assert [b["video"].shape for b in loader] == [b["video"].shape for b in batches]


def test_a_position_amid_a_group_goes_on_after_it():
    loader = digits().build(local_batch_size=2, global_batch_size=8)
    loader.load_state_dict({"position": 10, "clips": 1024})
    assert loader.position == 16
    loader.load_state_dict({"position": 24, "clips": 1024})
    assert loader.position == 24
    one_size = replace(digits(), buckets=()).build(local_batch_size=2, global_batch_size=8)
    one_size.load_state_dict({"position": 10, "clips": 1024})
    assert one_size.position == 10


@pytest.mark.parametrize("sizes", [((2, 32, 0),), ((2, 32, 32), (3, 32, 48), (2, 32, 32))])
def test_sizes_that_make_no_sense_are_refused(sizes):
    with pytest.raises(ValueError, match=r"give positive sizes, and each of several buckets once"):
        VideoDataLoader.Config(source="digits", buckets=sizes).build()


def test_a_folder_s_videos_go_to_the_size_that_fits_them(tmp_path, write_video):
    def video(name, frames, height, width):
        write_video(
            tmp_path / "videos" / f"{name}.mov",
            [np.full((height, width, 3), i, np.uint8) for i in range(frames)],
        )

    video("wide", 40, 32, 64)
    video("short_wide", 9, 32, 60)
    video("tall", 12, 70, 32)
    video("too_short", 4, 32, 64)
    wide, short, tall = (16, 16, 32), (8, 16, 32), (8, 32, 16)
    options = dict(num_frames=1, height=8, width=8, stride=4, cache_dir=tmp_path / "cache")
    folder = VideoFolder(tmp_path / "videos", buckets=[wide, short, tall], holdout=0, **options)
    assert [p.stem for p, _ in folder.skipped] == ["too_short"]
    assert [len(b) for b in folder.buckets] == [7, 1, 2]
    for bucket, size in zip(folder.buckets, (wide, short, tall), strict=True):
        assert all(folder[i]["video"].shape == (3, *size) for i in bucket)
    options |= dict(buckets=[wide, short, tall], split="validation")
    held = VideoFolder(tmp_path / "videos", **options)
    assert [len(b) for b in held.buckets] == [1, 0, 0]
    assert held[0]["video"][0, :, 0, 0].tolist() == list(range(24, 40))


def test_a_pipe_is_no_video_of_any_size(tmp_path, write_scenes):
    write_scenes(tmp_path / "videos" / "a.mov", [20])
    os.mkfifo(tmp_path / "videos" / "pipe.mov")
    options = dict(num_frames=8, height=8, width=8, buckets=[(8, 8, 16), (8, 16, 8)])
    folder = VideoFolder(tmp_path / "videos", cache_dir=tmp_path / "cache", **options)
    assert [p.name for p, _ in folder.skipped] == ["pipe.mov"]
