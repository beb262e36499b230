"""How FLOPs are compared at equal loss, and what the sizes of the scaling runs take."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import scaling
from benchmarks.evidence import frontier, scale
from models.attention import Dense
from train.data.doom.__main__ import Options
from train.data.doom.film import write_lossless
from train.demo.measure import Trial

LAW = 5.0, -0.25


def law(flops, factor=1.0):
    return math.exp(LAW[0]) * (flops * factor) ** LAW[1]


def test_a_power_law_and_its_saving_are_found_again():
    budgets = [1e9 * 2**i for i in range(8)]
    dense = [(c, law(c)) for c in budgets]
    assert frontier.power_law(dense) == pytest.approx(LAW)
    sparse = [(c, law(c, 2.5)) for c in budgets]
    assert frontier.saving(dense, sparse) == pytest.approx((2.5,) * 3)
    never = [(c, 2 * law(budgets[0])) for c in budgets]
    assert all(math.isnan(x) for x in frontier.saving(dense, never))


def test_the_frontier_is_the_better_size_where_there_is_one():
    small, large = [(1.0, 4.0), (100.0, 2.0)], [(10.0, 5.0), (1000.0, 1.0)]
    found = dict(frontier.frontier([small, large], [0.5, 1, 10, 100, 1000, 2000]))
    assert found.keys() == {1, 10, 100, 1000}
    assert found[10] == pytest.approx(math.sqrt(8)) and found[1000] == pytest.approx(1)


def test_where_the_best_size_ends_dense_attention_costs_no_more():
    small, large = [(1.0, 4.0), (100.0, 2.0)], [(10.0, 5.0), (1000.0, 3.0)]
    dense = frontier.frontier([small, large], [1, 10, 100, 1000])
    assert dense[-1] == (1000, pytest.approx(3))  # which the small size had reached long before
    sparse = [(flops / 2, loss) for flops, loss in dense]
    assert frontier.saving(dense, sparse) == pytest.approx((2, 2, 2))


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=20))
def test_the_envelope_is_what_nothing_cheaper_beats(points):
    found = frontier.envelope([points[::2], points[1::2]])
    beaten = {p for p in points for q in points if q != p and q[0] <= p[0] and q[1] <= p[1]}
    assert set(found) == set(points) - beaten


@pytest.mark.parametrize("seconds", [100.0, 350.0, 2000.0])
def test_a_run_and_its_validations_take_their_share_of_the_time(monkeypatch, seconds):
    step = 0.5
    monkeypatch.setattr(scaling, "try_steps", lambda _: Trial(peak_memory=0, step_seconds=step))
    cell = scaling.Cell(replace(scale.CPU, validation_clips=16), 256)
    steps = scaling.steps_for(cell, Dense(), "footage", seconds)
    validations = (scale.POINTS + 1) * 16 * step / 3
    assert steps % scale.POINTS == 0 and steps * step + validations <= seconds
    assert (steps + scale.POINTS) * step + validations > seconds


def test_the_plan_has_every_method_and_sparse_ones_save_what_attention_takes(monkeypatch):
    monkeypatch.setitem(scaling.SIZES, "gpu", {"60m": scaling.SIZES["gpu"]["60m"]})
    monkeypatch.setitem(scaling.VIDEOS, "gpu", scaling.VIDEOS["gpu"][:1])
    lines = scaling.plan(scale.GPU, 300).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len(cells) == 3
    for dense, vsa, bsa in zip(*[iter(cells)] * 3):
        assert [row[2] for row in (dense, vsa, bsa)] == ["dense", "vsa", "bsa"]
        of_attention = [float(row[3].replace(",", "")) for row in (dense, vsa, bsa)]
        assert of_attention[0] / of_attention[1] == pytest.approx(8, rel=0.03)
        assert of_attention[2] < of_attention[1]


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A folder with one film for each split, as long as those of the experiments."""
    folder = tmp_path_factory.mktemp("films")
    for split in ("train", "validation"):
        (folder / split).mkdir()
        frames = np.zeros((Options(out=folder).num_frames, 24, 32, 3), np.uint8)
        write_lossless(folder / split / "0.mkv", frames)
    return folder


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_each_size_finds_a_clip_of_its_length_in_a_film(film, tmp_path, machine):
    scales = [cell.scale for cell in scaling.cells(scale.SCALES[machine])]
    scales += [of for name, of in scale.SCALES.items() if name.startswith(machine)]
    of_length = {(of.fps, of.model.video[0]): of for of in scales}  # any size of frame will do
    for of in of_length.values():
        config = of.trainer(Dense(), "doom", seed=0, steps=16, folder=Path()).dataloader
        told = dict(path=str(film), height=24, width=32, cache_dir=str(tmp_path))
        for split in ("train", "validation"):
            clips = replace(config, **told).build(split=split).clips
            assert clips[0]["video"].shape[1] == of.model.video[0]


def test_sizes_are_chosen_by_name():
    named = [cell.scale.name for cell in scaling.cells(scale.GPU, scaling.TRAINED["gpu"])]
    assert named[:2] == ["gpu-60m-16x32x32", "gpu-120m-16x32x32"] and len(named) == 4
    with pytest.raises(ValueError, match="--sizes 2m: gpu has 60m, 120m, 410m, 1b4"):
        next(scaling.cells(scale.GPU, ["2m"]))
