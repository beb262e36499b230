"""The experiment on recurring content: its tasks, what it counts as found, and that it runs."""

import multiprocessing
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import forked
import pytest
import torch
from einops import rearrange

from benchmarks.evidence import copies
from benchmarks.evidence.copies import (
    ARMS,
    EVERYWHERE,
    FOUR,
    KEEP,
    METHODS,
    MIXED,
    POOLS,
    SCALES,
    TASKS,
    chosen,
    runs,
)
from benchmarks.evidence.page import SECTIONS
from benchmarks.evidence.runs import side_by_side
from benchmarks.evidence.slots import RandomVSA
from benchmarks.record import read
from flexsparse import VideoTiling
from models.attention import VSA, Dense
from train.data.copies.floors import copies_in, tiles_of
from train.demo.copies import floors_of, found_by, held_out, right_share

CPU = SCALES["cpu"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("scale", SCALES)
def test_every_task_can_be_drawn_and_has_copies_that_lie_in_other_tiles(task, scale):
    of = SCALES[scale]
    config = of.trainer(of.methods["vsa"], task, seed=0, steps=1, folder=Path())
    clips = held_out(config)
    if scale == "cpu":
        tiling = VideoTiling(clips.grid, of.tile)
        truth = copies_in(clips.layout(0), tiling)
        assert (truth > 0).any(1).mean() > 0.6 and (truth > 0).mean() < 0.7
        found = floors_of(config, tiling)
        assert found.everything < 0.97 * found.tile


def covariance(clips, x):
    """Of the tokens of a clip x: equal ones are one content, and neighbours are as alike as their
    distance says, where the task has placed them."""
    of, (frames, *_) = clips.copies, clips.grid
    if not of.alike:
        return (x[:, None] == x).all(-1).double()
    t, h, w = torch.meshgrid(*map(torch.arange, clips.grid), indexing="ij")
    of_one_piece = torch.ones(x.shape[0], x.shape[0], dtype=torch.bool)
    if of.where == "loop":
        t = t % (frames // of.copies)
    elif of.where == "pan":
        t, w = torch.zeros_like(t), w + of.speed * torch.minimum(t, frames - t)
    else:
        corner = torch.arange(x.shape[0]).view(clips.grid)
        t, h, w, z = t % of.cell[0], h % of.cell[1], w % of.cell[2], (t, h, w)
        first = x[corner[z[0] - t, z[1] - h, z[2] - w].flatten()]
        of_one_piece = (first[:, None] == first).all(-1)
    place = torch.stack([t, h, w], -1).flatten(0, 2).double()
    return torch.exp(-torch.cdist(place, place, p=1) / of.alike) * of_one_piece


def wiener(same, t, tile):
    """Of the velocity of the tokens of a tile, from them alone: what is left of its variance, 2."""
    same, own = same[tile][:, tile], torch.eye(len(tile), dtype=torch.float64)
    across, noisy = t * own - (1 - t) * same, (1 - t) ** 2 * same + t**2 * own
    return (2 - (across * torch.linalg.solve(noisy, across)).sum(0)).mean().item()


ALIKE = [task for task, x in CPU.tasks.items() if x.alike]


@pytest.mark.parametrize("task", [*MIXED, *ALIKE, "small objects"])
def test_floors_are_those_of_the_clips_and_times_that_validation_meets(task, tiny, tmp_path):
    """From pixels and where the task says that content lies."""
    config = SCALES["cpu"].trainer(Dense(), task, seed=1, steps=1, folder=tmp_path)
    trainer = config.build()
    times = []

    def model(x, t, context):
        times.extend(t.double().tolist())
        return torch.zeros_like(x)

    try:
        trainer.validator.loss(model)
    finally:
        trainer.close()
    videos = [video for batch in trainer.validator.batches for video in batch["video"]]
    clips = held_out(config)
    tiling = VideoTiling(clips.grid, CPU.tile)
    everything = VideoTiling(tiling.video, tiling.video)
    tokens = [rearrange(x, "c t (h p) (w q) -> (t h w) (c p q)", p=4, q=4) for x in videos]
    same = [covariance(clips, x) for x in tokens]
    others = tiling.num_tiles - 1
    found = floors_of(config, tiling, (1, others))
    for seen, floor in ((tiling, found.tile), (everything, found.everything)):
        due = [wiener(x, t, i) for x, t in zip(same, times, strict=True) for i in tiles_of(seen)]
        assert floor == pytest.approx(sum(due) / len(due), rel=1e-5)  # times are fp32
    assert found.others[others] == pytest.approx(found.everything)
    assert found.everything < found.others[1] < found.tile <= found.patch * (1 + 1e-12)


@pytest.mark.parametrize("task", TASKS)
def test_recorded_floors_are_those_that_are_computed(task):
    config = CPU.trainer(Dense(), task, seed=0, steps=1, folder=Path())
    found = floors_of(config, VideoTiling(config.model.grid, CPU.tile), (1, 3, 7))
    due = [found.patch, found.tile, found.everything, *found.others.values()]
    rows = [row for row in read("evidence") if row["scale"] == CPU.name and row["data"] == task]
    rows = [row for row in rows if row["experiment"] == "copies"]
    assert len(rows) >= 3 * len(EVERYWHERE)
    for row in rows:
        told = [row[key] for key in ("patch_floor", "tile_floor", "floor")]
        assert told + list(row["others_floor"].values()) == pytest.approx(due, abs=1e-5)


def test_the_share_of_all_tiles_that_hold_copies_is_that_of_the_clips_looked_at(tiny):
    slot = VSA(top_k=2, tile=CPU.tile)
    config = SCALES["cpu"].trainer(slot, MIXED[0], seed=0, steps=1, folder=Path())
    clips = held_out(config)
    model = config.model.build()
    tiling = model.tiling
    truth = [(copies_in(clips.layout(number), tiling) > 0).mean() for number in range(3)]
    assert found_by(model, clips, tiling, count=3).of_all == pytest.approx(sum(truth) / 3)
    assert len(set(truth)) == 3


@pytest.mark.parametrize("scale", SCALES)
def test_every_attention_builds_for_the_grid(scale):
    of = SCALES[scale]
    for slot in of.methods.values():
        tiling = slot.tiling(of.model.grid)
        slot.build(of.model.dim, of.model.heads, tiling), slot.top_k_for(tiling)
    assert len(set(of.methods.values())) == len(METHODS) and list(of.methods) == METHODS


def test_which_are_run():
    def named(**options):
        return chosen(Namespace(**dict(quick=False, all=False, data=None, only=None) | options))

    main, every = named(), named(all=True)
    more = len(METHODS) - len(EVERYWHERE)
    of_pools = len(POOLS) * len(MIXED)
    assert len(set(main)) == len(EVERYWHERE) * (len(TASKS) - 2) + of_pools + 2 * (more - len(ARMS))
    assert len(set(every)) == len(EVERYWHERE) * len(TASKS) + of_pools + 6 * more + len(KEEP)
    assert set(main) < set(every) and len(runs(CPU, main, 3)) == 3 * len(main) == 261
    assert named(quick=True) == [("shuffle", name) for name in FOUR] and set(FOUR) < set(METHODS)
    assert named(data=["pan"], only=["bsa, top-k"]) == [("pan", "bsa, top-k")]
    assert named(only=["dense, gated"]) == [(task, "dense, gated") for task in TASKS]


def test_what_counts_as_found():
    tile_map = torch.eye(4, dtype=torch.bool).repeat(2, 1, 1)
    tile_map[0, 0, 1] = tile_map[1, 2, 3] = tile_map[1, 2, 0] = True
    truth = torch.zeros(4, 4, dtype=torch.bool)
    truth[0, 1] = truth[2, 0] = True
    assert right_share(tile_map, truth) == pytest.approx(2 / 3)


def test_random_tiles_are_as_many_with_the_own_one_and_always_the_same():
    tiling = VideoTiling((4, 4, 8), (2, 2, 2))
    slot = RandomVSA(top_k=3, tile=(2, 2, 2)).build(32, 2, tiling)
    q, k = torch.randn(2, 3, 2, tiling.padded_tokens, 16)
    chosen = slot.choose(q, k, tiling).tile_map
    assert (chosen.sum(-1) == 3).all() and chosen.diagonal(dim1=-2, dim2=-1).all()
    assert torch.equal(chosen, slot.choose(k, q, tiling).tile_map)
    assert not torch.equal(chosen[:, 0], chosen[:, 1])


@pytest.fixture
def tiny(monkeypatch):
    small = replace(CPU, model=replace(CPU.model, dim=32, layers=1, ffn=32), batch=1)
    monkeypatch.setitem(SCALES, "cpu", replace(small, validation_clips=2))


def test_it_runs_once_on_two_cores_and_tells_of_floors_and_of_copies(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: forked.CONTEXT)
    monkeypatch.setattr(copies.os, "cpu_count", lambda: 2)
    line = ["--quick", "--scale", "cpu", "--steps", "2"]
    line += ["--out", str(tmp_path), "--results", str(tmp_path)]
    assert copies.main(line) == 0
    rows = {row["name"]: row for row in read("evidence", tmp_path)}
    assert set(rows) == set(FOUR)
    for row in rows.values():
        assert row["experiment"] == "copies" and row["data"] == "shuffle"
        assert row["patch_floor"] == row["tile_floor"] > row["floor"] > 0
        assert [step for step, _ in row["validation"]] == [0, 1, 2]
        assert [step for step, _ in row["watched"]] == [0, 1, 2]
        assert row["watched"][-1][1] == {"finds": row["finds"]}
        assert row["attention_flops"] > 0 and "losses" not in row
        assert row["device"].endswith("1 threads")
        assert len(row["finds"]) == (row["name"] in ("vsa", "bsa"))
        assert all(0 <= x <= 1 for x in row["finds"])
    page = SECTIONS["copies"](tmp_path, tmp_path)
    assert "**shuffle**: least losses" in page
    assert "| BSA |" in page and "| its own tile |" in page
    assert len(list(tmp_path.glob("evidence-copies-cpu*.png"))) == 2
    assert copies.main(line) == 0 and len(read("evidence", tmp_path)) == 4


def test_a_core_that_fails_is_told(tmp_path, monkeypatch):
    """Here each for want of a place for its rows."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: forked.CONTEXT)
    file = tmp_path / "file"
    file.touch()
    todo = runs(CPU, [("shuffle", "vsa"), ("shuffle", "bsa")], 1)
    with pytest.raises(RuntimeError, match="start again to go on"):
        side_by_side(todo, CPU, 1, tmp_path, file / "below", 2)
