"""A schedule of sparsity in training: who attends how, when; what is compiled; what is resumed."""

from dataclasses import replace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from trainer_runs import run, tiny, weights

from flexsparse import Mass, Threshold, TopK, VideoTiling
from models.attention import BSA, VSA, Dense
from train.configs.video_dit import loader
from train.records.metrics import Metrics
from train.sparsity import break_even
from train.sparsity.annealing import Annealing, SparsityConfig
from train.sparsity.annealing import annealed as annealed_rule
from train.sparsity.break_even import BreakEven, measure_break_even
from train.sparsity.schedules import Constant, DenseWarmup, FallingTiles
from train.weights.checkpoint import Checkpointer

FALL = FallingTiles(dense_steps=1, by=2, every=1)  # of 32 tiles: dense, dense, 30, 28, ...
QUIET = Checkpointer.Config(enable=False)


def annealed(folder, slot=None, schedule=FALL, break_even=0.2, **changes):
    """A tiny run of 32 tiles, 20 of them at most attended to by the sparse kernel."""
    slot = VSA(tile=(1, 2, 2), top_k=3) if slot is None else slot
    sparsity = SparsityConfig(schedule=schedule, break_even=break_even)
    config = tiny(folder, attention=slot, sparsity=sparsity, **changes)
    config.model = replace(config.model, video=(8, 32, 32))
    return replace(config, dataloader=loader(config.model, source="digits"))


SLOTS = [VSA(tile=(1, 2, 2), top_k=3), BSA(kv=Threshold(3), tile=(1, 2, 2), window=None)]


@pytest.mark.parametrize("slot", SLOTS)
def test_layers_follow_the_schedule_and_the_dense_kernel_takes_what_it_does_faster(tmp_path, slot):
    trainer = annealed(tmp_path, slot, steps=40, checkpoint=QUIET).build()
    trainer.close()
    slots = [block.self_attention.slot for block in trainer.model.layers.values()]
    own = trainer.annealing._rules
    for step in range(1, 41):
        tiles = trainer.annealing.apply(step)
        planned = None if step == 1 else max(3, 32 - 2 * (step - 1))
        dense = planned is None or (planned > 3 and 1 - planned / 32 <= 0.2)
        assert tiles == (None if dense else planned)
        for layer, rule in zip(slots, own, strict=True):
            if dense or planned == 3:
                assert layer.kv_rule is (None if dense else rule)
            else:
                assert layer.kv_rule.k.item() == planned
    lines = trainer.annealing.describe()
    assert lines[0] == "attention at steps 1 to 1: dense"
    assert "dense, where the schedule has 30 to 26 of 32 tiles" in lines[1]
    assert "24 to 4 of 32 tiles, sparsity 87.5%" in lines[2]
    assert lines[3] == "attention at steps 16 to 40: 3 of 32 tiles, sparsity 90.6%"


@pytest.mark.parametrize("slot", SLOTS)
def test_a_whole_schedule_compiles_three_programs(tmp_path, slot):
    fall = FallingTiles(dense_steps=1, by=4, every=1)
    options = dict(slot=slot, schedule=fall, steps=10, checkpoint=QUIET)
    trainer = annealed(tmp_path, **options).build()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    for block in trainer.model.layers.values():
        block.compile(fullgraph=True, backend=counter)
    history = trainer.train()
    trainer.close()
    values = {trainer.annealing.tiles_at(step) for step in range(1, 11)}
    assert len(values) == 8
    assert counter.frame_count == 3
    numbers, _ = run(annealed(tmp_path / "plain", **options))
    assert [(record.loss, record.grad_norm) for record in history.steps] == numbers


def test_resuming_in_the_middle_equals_going_on(tmp_path, monkeypatch):
    found = iter([BreakEven(1.0, 1.1, 0.5, 0.9), BreakEven(1.0, 2.0, 0.9, 0.9)])
    monkeypatch.setattr(break_even, "measure_break_even", lambda *a, **k: next(found))
    config = annealed(tmp_path / "resumed", steps=10, break_even=-1.0)
    first, _ = run(config, until=6)
    trainer = config.build()
    trainer.close()
    measured = trainer.annealing.break_even
    assert trainer.step == 6 and measured == pytest.approx(0.15), "the first one measured"
    rules = [block.self_attention.slot.kv_rule for block in trainer.model.layers.values()]
    assert [rule.k.item() for rule in rules] == [32 - 2 * 6] * 2, "as at step 7 before it is taken"
    second, resumed = run(config)
    numbers, straight = run(annealed(tmp_path / "straight", steps=10, break_even=measured))
    assert first + second == numbers
    assert all(torch.equal(resumed[k], straight[k]) for k in straight)


def test_a_dense_model_is_adapted_from_its_checkpoint(tmp_path):
    dense = annealed(tmp_path / "dense", Dense(), Constant(), steps=2)
    _, trained = run(dense)
    start = Checkpointer.Config(initial_load_path=str(tmp_path / "dense/checkpoint/step-2"))
    slot = VSA(tile=(1, 2, 2), top_k=3, adapt=True)
    trainer = annealed(tmp_path / "sparse", slot, FALL, checkpoint=start, steps=20).build()
    trainer.close()
    found, trained = (
        {name: x for name, x in states.items() if name.startswith("model.")}
        for states in (weights(trainer), trained)
    )
    gates = {name for name in found if "slot.gate_coarse" in name}
    assert found.keys() - gates == trained.keys()
    assert all(torch.equal(found[k], trained[k]) for k in trained)
    assert gates and not any(found[name].any() for name in gates)
    log = (tmp_path / "sparse/train.log").read_text()
    assert "is of a model without 4 of these weights, which stay as they start" in log


def test_what_cannot_be_annealed_is_refused_before_training(tmp_path):
    mass = BSA(kv=Mass(0.9), tile=(1, 2, 2), window=None)
    with pytest.raises(ValueError, match=r"Mass\(.*no number of tiles .*use Threshold or TopK"):
        annealed(tmp_path / "mass", mass).build()
    with pytest.raises(ValueError, match="schedule is FallingTiles.*but attention is dense"):
        annealed(tmp_path / "dense", Dense()).build()
    straight = annealed(tmp_path / "warm", mass, DenseWarmup(2), break_even=-1.0).build()
    straight.close()
    assert [straight.annealing.apply(step) for step in (1, 2, 3)] == [None, None, 32]
    assert straight.annealing.break_even == 0, "nothing to measure"


def test_the_schedule_knows_what_a_rule_admits_at_most(tmp_path):
    slot = BSA(kv=Threshold(3, max_tiles=6), tile=(1, 2, 2), window=None)
    trainer = annealed(tmp_path, slot, steps=40, checkpoint=QUIET).build()
    trainer.close()
    assert {trainer.annealing.tiles_at(step) for step in range(2, 41)} == {6, 4, 3}


def test_a_model_that_does_not_say_its_tiles_stays_as_it_is(tmp_path):
    model = annealed(tmp_path).model.build()
    plain = nn.ModuleDict({"layers": model.layers})  # no top_k
    rules = [block.self_attention.slot.kv_rule for block in model.layers.values()]
    for steps in (0, 4):
        Annealing(plain, Constant(), steps).apply(1)
    Annealing(model, Constant(), 0).apply(1)
    assert rules == [block.self_attention.slot.kv_rule for block in model.layers.values()] == [3, 3]
    with pytest.raises(ValueError, match="but the model has no top_k"):
        Annealing(plain, FALL, 4)
    with pytest.raises(ValueError, match="break_even is 1.5: give a sparsity of 0 to 1, or -1"):
        SparsityConfig(break_even=1.5)


def test_a_run_too_short_for_its_schedule_says_so(tmp_path):
    trainer = annealed(tmp_path, steps=10, checkpoint=QUIET).build()
    trainer.close()
    assert (
        "before attention is at its target of 3 tiles: that takes 16"
        in (tmp_path / "train.log").read_text()
    )


@pytest.mark.parametrize("slot", SLOTS)
def test_the_break_even_is_measured_on_a_layer_like_the_models(tmp_path, slot):
    config = annealed(tmp_path, slot)
    found = measure_break_even(config.model.build(), 2, torch.float32, rounds=2)
    assert min(found.dense, found.all_tiles, found.at_target) > 0
    assert found.target == 1 - 3 / 32 and 0 <= found.sparsity <= found.target
    said = f"faster one above a sparsity of {found.sparsity:.0%}" if found.pays else "is slower"
    assert said in str(found)


def test_time_is_linear_between_what_was_measured():
    found = BreakEven(dense=2.0, all_tiles=2.5, at_target=0.5, target=0.8)
    at = 2.5 + (0.5 - 2.5) * found.sparsity / 0.8
    assert at == pytest.approx(2.0) and found.sparsity == pytest.approx(0.2)
    assert BreakEven(dense=2.0, all_tiles=1.9, at_target=0.5, target=0.8).sparsity == 0
    slow = BreakEven(dense=2.0, all_tiles=9.0, at_target=3.0, target=0.8)
    assert slow.sparsity == 0.8 and "slower than dense attention even at its target" in str(slow)


def test_curves_show_the_sparsity_of_the_step(tmp_path):
    config = annealed(tmp_path, steps=9, checkpoint=QUIET)
    config.metrics = Metrics.Config(log_freq=1)
    trainer = config.build()
    trainer.train()
    trainer.close()
    (folder,) = (tmp_path / "tb").glob("*")
    board = EventAccumulator(str(folder))
    board.Reload()
    shown = [event.value for event in board.Scalars("attention/sparsity")]
    tiles = [trainer.annealing.tiles_at(step) for step in range(1, 10)]
    assert shown == pytest.approx([0 if k is None else 1 - k / 32 for k in tiles])
    assert shown[0] == 0 < shown[-1]


class Layered(nn.Module):
    """As many layers as rules, of a model of 32 tiles."""

    top_k, tiling = 2, VideoTiling((8, 4, 4), (1, 2, 2))

    def __init__(self, *rules):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.layers = nn.ModuleList(nn.Module() for _ in rules)
        for layer, rule in zip(self.layers, rules, strict=True):
            layer.kv_rule = rule


def test_each_layer_keeps_to_its_own_cap_while_tiles_fall():
    caps = [6, 4, None]
    model = Layered(*(TopK(2, max_tiles=cap) for cap in caps))
    annealing = Annealing(model, FALL, steps=20)
    annealing.break_even = -1.0
    seen = set()
    for step in range(2, 17):
        tiles = annealing.apply(step)
        admitted = [layer.kv_rule(torch.arange(32.0)).sum() for layer in model.layers]
        assert admitted == [min(tiles, cap or tiles) for cap in caps]
        seen.add(tiles)
    assert {30, 8, 6, 4, 2} <= seen


def test_a_cap_stays_with_a_rule_that_takes_its_tiles_from_a_schedule():
    rule = annealed_rule(TopK(8, max_tiles=6), torch.tensor(8), 16)
    assert rule.bounds(32)[1] == 6 and rule(torch.arange(32.0)).sum() == 6
    assert annealed_rule(TopK(8, max_tiles=6), torch.tensor(8), 5).bounds(32)[1] == 5
