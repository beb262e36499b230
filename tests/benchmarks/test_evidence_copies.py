"""The experiment on recurring content: its tasks, what it counts as found, and that it runs."""

from dataclasses import replace

import pytest
import torch

from benchmarks.evidence import copies
from benchmarks.evidence.copies import METHODS, MORE, SCALES, TASKS, right_share, runs
from benchmarks.evidence.page import SECTIONS
from benchmarks.evidence.slots import RandomVSA
from benchmarks.record import read
from flexsparse import VideoTiling
from models.attention import VSA

CPU = SCALES["cpu"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("scale", SCALES)
def test_every_task_can_be_drawn_and_has_copies_that_lie_in_other_tiles(task, scale):
    clips = copies.open_clips(SCALES[scale].loader(task, 0), "validation")
    tiling = VideoTiling(clips.grid)
    if scale == "cpu":
        truth = copies.copies_in(clips.layout(0), tiling)
        assert (truth > 0).any(1).mean() > 0.7 and (truth > 0).mean() < 0.7
        found = copies.floors_of(TASKS[task], clips, tiling, [0.3, 0.6, 0.9])
        assert found.everything < 0.97 * found.tile


def test_every_attention_builds_for_the_grid():
    model = CPU.model
    for name, slot in (METHODS | MORE).items():
        tiling = slot.tiling(model.grid)
        slot.build(model.dim, model.heads, tiling), slot.top_k_for(tiling)
        assert all(name != other or slot == same for other, same in MORE.items())
    assert len(runs(list(TASKS), METHODS | MORE, 1)) == 4 * len(TASKS) + 2 * len(MORE)


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
    sizes = dict(video=(16, 16, 16), dim=32, layers=1, ffn=32)
    small = replace(CPU, model=replace(CPU.model, **sizes), batch=1, validation_clips=2)
    monkeypatch.setitem(SCALES, "cpu", small)
    for name in ("vsa", "bsa"):
        monkeypatch.setitem(METHODS, name, replace(METHODS[name], sparsity=0.5))


def test_it_runs_once_and_tells_of_floors_and_of_copies(tiny, tmp_path, capsys):
    line = ["--quick", "--scale", "cpu", "--steps", "2"]
    line += ["--out", str(tmp_path), "--results", str(tmp_path)]
    assert copies.main(line) == 0
    rows = read("evidence", tmp_path)
    assert [row["name"] for row in rows] == list(METHODS)
    for row in rows:
        assert row["experiment"] == "copies" and row["data"] == "loop"
        assert row["patch_floor"] == row["tile_floor"] > row["floor"] > 0
        assert [step for step, _ in row["validation"]] == [0, 1, 2]
        assert row["attention_flops"] > 0
    assert [len(row["finds"]) for row in rows] == [0, 0, 1, 1]
    assert all(0 <= x <= 1 for row in rows for x in row["finds"])
    assert "closed" in capsys.readouterr().out
    page = SECTIONS["copies"](tmp_path, tmp_path)
    assert "**loop**: least losses" in page and "| BSA |" in page and "| its own tile |" in page
    assert len(list(tmp_path.glob("evidence-copies-cpu*.png"))) == 2
    assert copies.main(line) == 0 and len(read("evidence", tmp_path)) == 4
    assert isinstance(METHODS["vsa"], VSA)
