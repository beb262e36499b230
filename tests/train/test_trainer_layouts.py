"""FSDP, HSDP and Ulysses, alone and together, train as one process does; all resume each other."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from layout_ranks import (
    LAYOUTS,
    RESUMED,
    RUNS,
    SHARED,
    SLOTS,
    annealed_run,
    divided,
    measured,
    resumed_run,
    sums,
    whole_run,
)
from test_trainer_ranks import assert_as_exact_as_plain, distance, exactly
from torch import nn
from trainer_runs import finish, start, tiny

from flexsparse import VideoTiling
from flexsparse.slots import Dense
from train.distributed.parallelize import ParallelConfig, check_shared_sequences, parallel_dims
from train.plan.plan import plan
from train.sparsity.break_even import measure_break_even
from train.weights.checkpoint import complete_steps

NAMES = [(world, f"{layout}, {slot}") for world, layout, slot in RUNS]
runs = pytest.mark.parametrize("world, name", [*NAMES, (2, "compiled, vsa")])


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Callable[[str, int], list[dict[str, Any]]]:
    """What each rank has of a run by so many, after 1, 2, 4 and 1 took their turns at one."""
    folder = tmp_path_factory.mktemp("layouts")
    torch.save(measured(resumed_run(folder), RESUMED[0]), folder / "resumed.1.0.pt")
    for world in LAYOUTS:
        script = str(Path(__file__).with_name("layout_ranks.py"))
        finish(start(script, str(folder), ranks=world), timeout=400)
    torch.save(measured(resumed_run(folder)), folder / "resumed last.1.0.pt")
    assert complete_steps(folder / "resumed" / "checkpoint")[-1] == RESUMED[-1]

    def load(name: str, world: int) -> list[dict[str, Any]]:
        return [torch.load(folder / f"{name}.{world}.{rank}.pt") for rank in range(world)]

    return load


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, tuple[dict[str, Any], Any]]:
    """By slot: what one process has, and what is exact."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        slot: (measured(whole_run(folder / slot, slot)), exactly(SLOTS[slot])) for slot in SLOTS
    }


@runs
def test_every_layout_gives_the_curve_of_one_process(found, alone, world, name):
    ranks, (one, exact) = found(name, world), alone[name.split(", ")[-1]]
    first = ranks[0]
    assert all(rank["numbers"] == first["numbers"] for rank in ranks)
    assert_as_exact_as_plain(first["numbers"], first["weights"], exact)
    assert distance(first["validation"], one["validation"]) <= 2 * exact[2]
    assert len(one["validation"]) == 2


@runs
def test_every_layout_chooses_as_one_process_does(found, alone, world, name):
    one = alone[name.split(", ")[-1]][0]["choices"]
    assert len(one) == (0 if "dense" in name else 4), "tiles and queries of two layers"
    for rank in found(name, world):
        mine = rank["data"][1] == 0  # the first data rank has the first clip
        equal = [torch.equal(a, b) for a, b in zip(rank["choices"], one, strict=True)]
        assert all(equal) or not mine


@runs
def test_shards_differ_and_make_up_the_initial_weights(found, world, name):
    ranks, slot = found(name, world), SLOTS[name.split(", ")[-1]]
    torch.manual_seed(0)
    whole = dict(tiny("unused", attention=slot).model.build().named_parameters())
    parts = 2 if name.startswith("hsdp") else world
    random = 0
    for weight_name, weight in whole.items():
        shards = [rank["shards"][weight_name] for rank in ranks]
        assert torch.equal(torch.cat(shards[:parts]), weight), weight_name
        assert torch.equal(torch.cat(shards[-parts:]), weight), weight_name
        if weight.std() > 0 and len(weight) >= parts:
            random += 1
            pairs = [(a, b) for a in range(parts) for b in range(a)]
            assert not any(torch.equal(shards[a], shards[b]) for a, b in pairs), weight_name
    assert random > 10


@runs
def test_the_first_process_alone_makes_the_whole_model(found, world, name):
    assert [rank["whole models"] for rank in found(name, world)] == [1] + [0] * (world - 1)


def test_no_process_makes_the_whole_model_where_a_run_goes_on(found):
    goes_on = [found("resumed", world) for world in (2, 4)] + [found("resumed last", 1)]
    assert not any(rank["whole models"] for ranks in goes_on for rank in ranks)


@runs
def test_ranks_that_share_clips_have_the_same_and_all_have_those_of_one(found, alone, world, name):
    ranks, one = found(name, world), alone[name.split(", ")[-1]][0]
    degree = 1 if name.startswith(("fsdp,", "hsdp,")) else 2
    assert {rank["data"][0] for rank in ranks} == {world // degree}
    assert [sum(given, []) for given in zip(*clips_by_rank(ranks))] == one["clips"]


def clips_by_rank(ranks: list[dict[str, Any]]) -> list[list[list[float]]]:
    """The clips of each data rank, by step; processes that share clips must have the same."""
    found = {rank["data"][1]: rank["clips"] for rank in ranks}
    assert all(found[rank["data"][1]] == rank["clips"] for rank in ranks)
    return [found[rank] for rank in range(ranks[0]["data"][0])]


@runs
def test_the_plan_knows_what_is_sent(found, tmp_path, monkeypatch, world, name):
    layout, slot = name.split(", ")
    if layout == "compiled":
        pytest.skip("compiled graphs call their collectives out of sight")
    monkeypatch.setenv("WORLD_SIZE", str(world))
    config = divided(whole_run(tmp_path, slot), **LAYOUTS[world][layout])
    planned = plan(config, world, "cpu")
    owners, replicas, degree = planned.layout.owners, planned.layout.replicas, planned.layout.degree
    sent = {  # a rank keeps its own part of what is moved
        "all_gather": (owners - 1) / owners,
        "reduce_scatter": (owners - 1) / owners,
        "all_reduce": 2 * (replicas - 1) / replicas,
        "all_to_all": (degree - 1) / degree,
    }
    for rank in found(name, world):
        for kind, part in sent.items():
            expected = getattr(planned.traffic, kind)
            # FSDP pads each weight to a multiple of its ranks
            assert expected <= rank["sent"][kind] * part <= 1.01 * expected, kind


def test_1_2_4_and_1_processes_go_on_from_each_other(found):
    stages = [found("resumed", world)[0] for world in (1, 2, 4)] + found("resumed last", 1)
    assert [len(stage["numbers"]) for stage in stages] == [2, 2, 2, 2]
    exact = exactly(SLOTS["vsa"], steps=RESUMED[-1])
    numbers = [number for stage in stages for number in stage["numbers"]]
    assert_as_exact_as_plain(numbers, stages[-1]["weights"], exact)


def test_data_goes_on_in_the_same_order(found, tmp_path):
    clips = found("resumed", 1)[0]["clips"] + found("resumed", 2)[0]["clips"]
    clips += [a + b for a, b in zip(*clips_by_rank(found("resumed", 4)))]
    clips += found("resumed last", 1)[0]["clips"]
    batches = iter(tiny(tmp_path).dataloader.build(local_batch_size=4))
    for given in clips:
        assert given == sums(next(batches)["video"])
    assert len(clips) == RESUMED[-1]


def test_ranks_that_share_clips_anneal_alike_from_one_measured_break_even(found, tmp_path):
    first, second = found("annealed", 2)
    even = first["break even"]
    assert (first["numbers"], even) == (second["numbers"], second["break even"])
    assert 0 <= even <= 1 - 3 / 8
    one = measured(annealed_run(tmp_path, even))
    error = exactly(SLOTS["vsa"])[2]  # of the same slot without a schedule
    assert distance(first["numbers"], one["numbers"]) <= 2 * error


def test_what_does_not_fit_is_refused_in_a_line(tmp_path):
    with pytest.raises(ValueError, match='context_parallel_method is "ring": give "ulysses".*any'):
        ParallelConfig(context_parallel_method="ring")
    model = tiny(tmp_path).model
    with pytest.raises(ValueError, match="degree is 3: 2 heads cannot be shared.*them: 1, 2$"):
        check_shared_sequences(model, 3)
    check_shared_sequences(model, 2)
    words = "degree is 2, but Linear has no sequence_group: set it to 1"
    with pytest.raises(ValueError, match=words):
        check_shared_sequences(Plain(), 2)
    with pytest.raises(ValueError, match="degree is 2, but Own is no flexsparse.nn.AttentionLayer"):
        check_shared_sequences(replace(model, attention=OwnSlot()), 2)
    config = tiny(tmp_path / "run", parallel=SHARED)
    with pytest.raises(ValueError, match="degree 2 do not make up the 1 processes"):
        config.build()
    with pytest.raises(ValueError, match="parallel.context_parallel_degree 0"):
        parallel_dims(ParallelConfig(context_parallel_degree=0))
    assert not (tmp_path / "run").exists()


class Plain:
    def build(self) -> nn.Module:
        return nn.Linear(2, 2)


class Own(nn.Module):
    def reset_parameters(self) -> None:
        pass


class OwnSlot(Dense):
    def build(self, dim: int, num_heads: int, tiling: VideoTiling | None) -> nn.Module:
        return Own()


def test_the_break_even_is_that_of_the_heads_that_a_rank_has(tmp_path, monkeypatch):
    model, built = tiny(tmp_path).model.build(), []
    real = type(model.config.attention).build

    def build(self, dim, heads, tiling):
        built.append((dim, heads))
        return real(self, dim, heads, tiling)

    monkeypatch.setattr(type(model.config.attention), "build", build)
    measure_break_even(model, 1, torch.float32, rounds=1, degree=2)
    assert built == [(16, 1)]
