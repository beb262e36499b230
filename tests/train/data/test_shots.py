import itertools

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from train.data.order.shots import BREAK, breaks_in, find_shots, frame_change, windows_of_shot

lengths = st.lists(st.integers(3, 40), min_size=1, max_size=5)


@given(lengths, st.integers(0, 2**32 - 1))
def test_shots_are_cut_where_scenes_change(lengths, seed):
    """Scenes of camera noise and slow drift: the cuts are found, and the shots tile the video."""
    rng = np.random.default_rng(seed)
    changes = []
    for i, length in enumerate(lengths):
        changes += ([40.0] if i else []) + list(rng.uniform(0, 8, length - 1))
    borders = np.cumsum([0, *lengths])
    assert find_shots(changes) == list(
        zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)
    )


@given(st.lists(st.sampled_from([0.0, 3.0, 11.0, 14.0, 50.0, 200.0]), max_size=60))
def test_shots_tile_any_video(changes):
    shots = find_shots(changes)
    assert shots[0][0] == 0 and shots[-1][1] == len(changes) + 1
    assert all(a[1] == b[0] and a[0] < a[1] for a, b in itertools.pairwise(shots))


def test_steady_fast_motion_is_no_cut():
    assert find_shots([30.0, 45.0, 38.0, 60.0, 33.0, 41.0, 35.0, 52.0]) == [(0, 9)]


@example(start=3, length=20, num_frames=10, stride=1, holdout=0.1)  # one window for each split
@given(
    st.integers(0, 50),
    st.integers(1, 120),
    st.integers(1, 24),
    st.integers(1, 30),
    st.sampled_from([0.0, 0.1, 0.5]),
)
def test_windows_stay_inside_and_splits_share_no_frame(start, length, num_frames, stride, holdout):
    shot = (start, start + length)
    frames = {}
    for split in ("train", "validation"):
        starts = windows_of_shot(shot, num_frames, stride, holdout, split)
        frames[split] = {f for s in starts for f in range(s, s + num_frames)}
        assert frames[split] <= set(range(*shot))
    assert not frames["train"] & frames["validation"]
    assert bool(frames["train"]) == (length >= num_frames)
    assert bool(frames["validation"]) == (holdout > 0 and length >= 2 * num_frames)
    if frames["validation"]:
        assert max(frames["train"]) < min(frames["validation"])


def test_change_is_the_mean_difference():
    black = np.zeros((8, 8, 3), dtype=np.uint8)
    assert frame_change(black, black + 255) == 255
    assert frame_change(black + 200, black + 190) == 10


def test_breaks_are_cuts_and_hide_none():
    assert find_shots([BREAK] * 3) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert find_shots([1.0, BREAK, 40.0, BREAK, 1.0]) == [(0, 2), (2, 3), (3, 4), (4, 6)]
    assert breaks_in([1.0, BREAK, 40.0, BREAK]).count("(2 times)") and not breaks_in([40.0])
