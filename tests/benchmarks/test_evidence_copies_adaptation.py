"""The adaptation of a model that finds copies: its runs, and what is measured of them."""

from dataclasses import replace

import pytest

from benchmarks.evidence import copies_adaptation
from benchmarks.evidence.copies import SCALES
from benchmarks.evidence.runs import config_of, leave, train_run
from benchmarks.record import read
from train.losses import FlowLoss, VelocityDistillation

CPU = SCALES["cpu"]


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The base run, and those that go on from it."""
    asked = []
    monkeypatch.setattr(copies_adaptation, "all_of", lambda runs, *rest: asked.append(runs))
    monkeypatch.setattr(copies_adaptation, "side_by_side", lambda runs, *rest: asked.append(runs))
    line = ["--scale", "cpu", "--out", str(tmp_path), "--results", str(tmp_path)]
    assert copies_adaptation.main(line) == 0
    return asked


def test_each_target_comes_at_once_and_by_schedule_with_each_loss(asked):
    (base,), (dense, *after) = asked
    assert base.initial is None and dense.name == "dense on"
    assert len({(r.attention, r.schedule, r.loss) for r in after}) == len(after) == 12
    tiling = CPU.methods["vsa"].tiling(CPU.model.grid)
    for run in after:
        taught = run.name.partition(",")[2]
        weight = {" distilled": 1, " half distilled": 0.5}.get(taught)
        assert run.loss == (VelocityDistillation(weight) if weight else FlowLoss())
        target = run.attention.top_k_for(tiling)
        tiles = [run.schedule.tiles(step, tiling.num_tiles, target) for step in (0, 120, 240)]
        assert tiles == [None if "schedule" in run.name else target, target, target]
        assert str(run.initial).endswith("step-240")


def test_what_goes_on_is_trained_as_before_at_a_quarter_of_the_rate(asked, tmp_path):
    before, after = (
        config_of(run, CPU, 240, tmp_path).optimizer.param_groups[0].optimizer_kwargs
        for run in (asked[0][0], asked[1][1])
    )
    assert after == before | dict(lr=before["lr"] / 4) and before["weight_decay"] == 0


def test_recall_is_measured_before_halfway_and_at_the_end(asked, tmp_path):
    small = replace(CPU, model=replace(CPU.model, dim=32, layers=1, ffn=32), validation_clips=2)
    run = next(run for run in asked[1] if run.name == "vsa by schedule, distilled")
    try:
        train_run(replace(run, initial=None), small, 4, tmp_path, tmp_path)
    finally:
        leave()
    (row,) = read("evidence", tmp_path)
    assert [step for step, _ in row["watched"]] == [0, 2, 4]
    for _, seen in row["watched"]:
        assert len(seen["held"]) == len(seen["finds"]) == 1
        assert 4 / 32 < seen["held"][0] < 1 and 0.5 < seen["finds"][0] <= 1
