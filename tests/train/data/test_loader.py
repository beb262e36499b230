import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from train.data import ClipStream, MovingDigits, VideoDataLoader

DIGITS = VideoDataLoader.Config(source="digits", num_frames=2, height=32, width=32, seed=3)


def streams(clips, world, batch, **options):
    return [
        ClipStream(clips, batch_size=batch, rank=r, world_size=world, **options)
        for r in range(world)
    ]


def take(stream, n):
    return list(itertools.islice(stream, n))


small = st.integers(1, 5)


@given(st.integers(1, 40), small, small, st.integers(0, 99), st.booleans())
def test_ranks_share_every_epoch_without_overlap(n, world, batch, seed, shuffle):
    """Over any number of epochs together the ranks see each clip exactly that many times."""
    step = world * batch
    epochs = step  # so that whole epochs are whole steps
    shares = [
        take(s, n * epochs // world)
        for s in streams(range(n), world, batch, seed=seed, shuffle=shuffle)
    ]
    steps = [
        clip for k in range(n) for share in shares for clip in share[k * batch : (k + 1) * batch]
    ]
    for e in range(epochs):
        assert sorted(steps[e * n : (e + 1) * n]) == list(range(n))


@given(st.integers(2, 40), small, small, st.integers(0, 200))
def test_any_start_and_any_number_of_ranks_go_on_with_the_same_stream(n, world, batch, start):
    (whole,) = streams(range(n), 1, 1, seed=5)
    wanted = take(whole, start + 3 * world * batch)[start:]
    shares = streams(range(n), world, batch, seed=5)
    for share in shares:
        share.start = start
    got = [take(share, 3 * batch) for share in shares]
    order = [clip for k in range(3) for s in got for clip in s[k * batch : (k + 1) * batch]]
    assert order == wanted


def test_epochs_and_seeds_differ_in_order():
    stream, other = ClipStream(range(50), batch_size=1), ClipStream(range(50), batch_size=1, seed=1)
    both = take(stream, 100)
    assert both[:50] != both[50:] and both[:50] != take(other, 50)
    assert take(ClipStream(range(5), batch_size=1, shuffle=False), 7) == [0, 1, 2, 3, 4, 0, 1]
    loaders = (DIGITS.build(), replace(DIGITS, seed=4).build())
    orders = [[loader.stream.index(position) for position in range(50)] for loader in loaders]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    stream = ClipStream(range(11), batch_size=2, rank=1, world_size=2)
    alone = take(stream, 12)
    loader = DataLoader(stream, batch_size=2, num_workers=workers)
    assert torch.cat(take(loader, 6)).tolist() == alone


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in ("video", "context"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 5])
def test_resume_equals_going_on(workers, stop):
    config = VideoDataLoader.Config(
        source="digits", num_frames=2, height=32, width=32, num_workers=workers
    )
    straight = take(config.build(local_batch_size=2), stop + 4)
    first = config.build(local_batch_size=2)
    for _ in zip(range(stop), first, strict=False):
        pass
    second = config.build(local_batch_size=2)
    second.load_state_dict(first.state_dict())
    assert all(map(same, take(second, 4), straight[stop:]))


@settings(max_examples=10, deadline=None)
@given(small, small, st.integers(1, 4))
def test_a_run_resumes_on_another_number_of_ranks(before, after, steps):
    old = [
        DIGITS.build(dp_world_size=before, dp_rank=r, local_batch_size=after) for r in range(before)
    ]
    for loader in old:
        for _ in zip(range(steps), loader, strict=False):
            pass
    states = [loader.state_dict() for loader in old]
    assert all(state == states[0] for state in states)
    new = [
        DIGITS.build(dp_world_size=after, dp_rank=r, local_batch_size=before) for r in range(after)
    ]
    for loader in new:
        loader.load_state_dict(states[0])
    wanted = take(DIGITS.build(), (steps + 1) * before * after)[steps * before * after :]
    got = [batch for loader in new for batch in take(loader, 1)]
    assert torch.equal(
        torch.cat([b["video"] for b in got]), torch.cat([b["video"] for b in wanted])
    )


def test_a_second_iterator_goes_on_where_the_first_stopped():
    loader = DIGITS.build()
    first, second = take(loader, 2), take(loader, 2)
    assert all(map(same, first + second, take(DIGITS.build(), 4)))


def test_changed_data_is_said_on_resume(monkeypatch):
    said = []
    monkeypatch.setattr("train.data.loader.logger.warning", lambda *args: said.append(args))
    loader = DIGITS.build()
    loader.load_state_dict({"position": 7, "clips": 1024})
    assert not said
    loader.load_state_dict({"position": 7, "clips": 5})
    loader.load_state_dict({"position": 7, "clips": 2048})
    for words, clips in zip(said, (5, 2048), strict=True):
        assert f"had {clips} clips, now there are 1024" in words[0] % words[1:]
    assert loader.position == 7


def test_batches_have_the_promised_form():
    config = VideoDataLoader.Config(
        source="digits", num_frames=4, height=32, width=48, context_tokens=5, context_dim=8
    )
    batch = next(iter(config.build(local_batch_size=3)))
    assert batch["video"].shape == (3, 3, 4, 32, 48) and batch["context"].shape == (3, 5, 8)
    assert batch["video"].dtype == batch["context"].dtype == torch.float32
    assert batch["video"].min() == -1 and 0.5 < batch["video"].max() <= 1


def test_validation_is_one_pass_in_order_and_equal_on_every_rank(tmp_path, write_scenes):
    write_scenes(tmp_path / "videos" / "a.mov", [30, 30])
    write_scenes(tmp_path / "videos" / "b.mov", [30])
    config = VideoDataLoader.Config(
        path=str(tmp_path / "videos"), num_frames=10, height=32, width=32, cache_dir=str(tmp_path)
    )
    alone = config.build(split="validation")
    assert len(alone) == 3
    ranks = [
        config.build(dp_world_size=2, dp_rank=r, local_batch_size=1, split="validation")
        for r in range(2)
    ]
    for _ in range(2):  # each pass is the same, filled up though the last one was
        once = torch.cat([b["video"] for b in alone])
        assert len(once) == 3
        shares = [list(rank) for rank in ranks]
        assert [len(share) for share in shares] == [2, 2] == [len(rank) for rank in ranks]
        turns = [share[k]["video"] for k in range(2) for share in shares]
        assert torch.equal(torch.cat(turns), torch.cat([once, once[:1]]))


def test_digits_of_the_two_splits_differ():
    train, held_out = DIGITS.build().clips, DIGITS.build(split="validation").clips
    assert isinstance(train, MovingDigits) and isinstance(held_out, MovingDigits)
    assert train.first + train.length == held_out.first


def test_an_unknown_source_is_refused():
    known = '"folder", "digits", "copies"'
    with pytest.raises(ValueError, match=f'source="films": it is one of {known}'):
        VideoDataLoader.Config(source="films").build()


def test_a_folder_without_a_path_is_refused():
    with pytest.raises(ValueError, match="give --dataloader.path, a folder of videos"):
        VideoDataLoader.Config().build()


@pytest.mark.parametrize("cuda", [False, True])
def test_batches_are_pinned_where_there_is_cuda(monkeypatch, cuda):
    asked = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr("train.data.loader.DataLoader", lambda _, **o: asked.update(o) or ())
    assert not list(DIGITS.build()) and asked["pin_memory"] is cuda


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    ranks=st.integers(1, 3),
    batch=st.integers(1, 3),
    most=st.integers(1, 30),
)
def test_held_out_clips_are_numbered_alike_however_they_are_divided(sizes, ranks, batch, most):
    def numbered(ranks: int, batch: int) -> dict[int, int]:
        found = {}
        for rank in range(ranks):
            loader = DIGITS.build(
                dp_world_size=ranks, dp_rank=rank, local_batch_size=batch, split="validation"
            )
            ends = list(itertools.accumulate(sizes))
            loader.clips = range(ends[-1])
            loader.stream = ClipStream(
                loader.clips,
                batch_size=batch,
                rank=rank,
                world_size=ranks,
                shuffle=False,
                buckets=[range(end - size, end) for size, end in zip(sizes, ends)],
                group=ranks * batch,
            )
            kept = loader.keep(most)
            assert kept == min(most, sum(sizes))
            for i in range(len(loader)):
                for number, position in zip(loader.numbers(i), loader.stream.positions(i)):
                    if number is not None:
                        assert number not in found, "each once"
                        found[number] = loader.stream.index(position)
        assert sorted(found) == list(range(kept))
        return found

    assert numbered(ranks, batch) == numbered(1, 1)
