"""Schedules end exactly at their target, never admit more than before, and are the papers'."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.sparsity.schedules import Constant, DenseWarmup, FallingTiles, RisingSparsity

counts = st.integers(1, 60)
schedules = st.one_of(
    st.just(Constant()),
    st.builds(DenseWarmup, counts),
    st.builds(FallingTiles, st.integers(0, 60), counts, counts),
    st.builds(RisingSparsity, st.floats(0.01, 1.0), counts),
)


@st.composite
def goals(draw):
    n = draw(st.integers(1, 400))
    return n, draw(st.integers(1, n) | st.floats(0.5, n))


@given(schedules, goals())
def test_tiles_fall_from_all_to_exactly_the_target(schedule, goal):
    n, target = goal
    steps = 60 * (1 + max(n, 100))
    plan = [schedule.tiles(step, n, target) for step in range(0, steps, 7)]
    sparse = [tiles for tiles in plan if tiles is not None]
    assert plan[: len(plan) - len(sparse)] == [None] * (len(plan) - len(sparse)), "dense ones first"
    assert sparse == sorted(sparse, reverse=True)
    assert sparse[0] <= n and sparse[-1] == target
    assert all(tiles == target or tiles == int(tiles) for tiles in sparse)


def test_vsa_adapts_in_the_papers_steps():
    n, target = 364, 32  # 4x4x4 tiles of 16 x 28 x 52 tokens
    plan = [FallingTiles().tiles(step, n, target) for step in range(5000)]
    assert plan[:50] == [None] * 50
    assert plan[50:200:50] == [360, 356, 352] and plan[99] == 360
    assert plan.index(32) == 50 * 83 and plan[-1] == 32


def test_bsa_anneals_to_nine_tenths_and_not_to_85_percent():
    plan = [RisingSparsity().tiles(step, 1000, 100) for step in range(1000)]
    assert plan[:30] == [None] * 30 and plan[30:90:30] == [970, 940]
    assert plan[869] == 160 and plan[870] == 130 and plan[899] == 130
    assert plan[900] == plan[-1] == 100


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: DenseWarmup(-1), "steps must be an int of at least 0"),
        (lambda: FallingTiles(every=0), "every must be an int of at least 1"),
        (lambda: FallingTiles(by=1.5), "by must be an int of at least 1"),
        (lambda: RisingSparsity(by=0.0), "by must be above 0"),
    ],
)
def test_what_never_ends_or_is_no_number_of_tiles_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
