"""The same global batch gives the same training, however it is divided: as exact as plain fp32."""

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainer_runs import SPARSE, WAN, finish, plain_run, run, start, tiny

from models.attention import Dense
from train.losses import VelocityDistillation
from train.sparsity.annealing import SparsityConfig
from train.sparsity.schedules import FallingTiles
from train.weights.checkpoint import complete_steps

SLOTS = {"fsdp": SPARSE, "ddp": Dense()}  # what two_ranks.py trains


def distance(a, b):
    """Euclidean, over all weights (or numbers) together, in fp64."""
    if isinstance(a, dict):
        keys = [key for key in a if key in b]
        assert keys
        return sum(distance(a[key], b[key]) ** 2 for key in keys) ** 0.5
    return (torch.as_tensor(a).double() - torch.as_tensor(b).double()).norm().item()


def exactly(slot, **changes):
    """Numbers and weights in fp64, and how far plain PyTorch in fp32 is from them."""
    config = tiny("unused", attention=slot, **changes)
    numbers, weights = plain_run(config, torch.float64)
    plain_numbers, plain_weights = plain_run(config, torch.float32)
    rounding = torch.tensor(numbers).norm().item() * torch.finfo(torch.float32).eps
    numbers_error = max(distance(plain_numbers, numbers), rounding)
    return numbers, weights, numbers_error, distance(plain_weights, weights)


@pytest.fixture(scope="module")
def exact():
    return exactly(Dense())


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two_ranks")
    finish(start(str(Path(__file__).with_name("two_ranks.py")), str(folder), ranks=2))
    return folder


def assert_as_exact_as_plain(numbers, weights, exact, first_step=1):
    true_numbers, true_weights, numbers_error, weights_error = exact
    true_numbers = true_numbers[first_step - 1 :]
    assert len(numbers) == len(true_numbers)
    assert distance(numbers, true_numbers) <= 2 * numbers_error
    assert distance(weights, true_weights) <= 2 * weights_error


def test_one_process_equals_plain_pytorch(tmp_path, exact):
    assert_as_exact_as_plain(*run(tiny(tmp_path, attention=Dense())), exact)


def test_gradient_accumulation_equals_the_large_batch(tmp_path, exact):
    config = tiny(tmp_path, attention=Dense(), local_batch_size=1, global_batch_size=4)
    assert_as_exact_as_plain(*run(config), exact)


@pytest.mark.parametrize("name", SLOTS)
def test_two_processes_equal_one(two_ranks, name):
    results = [torch.load(two_ranks / name / f"rank{rank}.pt") for rank in range(2)]
    assert results[0]["numbers"] == results[1]["numbers"]
    assert_as_exact_as_plain(results[0]["numbers"], results[0]["weights"], exactly(SLOTS[name]))


def test_shards_differ_and_make_up_the_initial_weights(two_ranks):
    torch.manual_seed(0)
    whole = dict(tiny("unused", attention=SLOTS["fsdp"]).model.build().named_parameters())
    shards = [torch.load(two_ranks / "fsdp" / f"rank{rank}.pt")["shards"] for rank in range(2)]
    random = 0
    for name, weight in whole.items():
        assert torch.equal(torch.cat([shard[name] for shard in shards]), weight), name
        if weight.std() > 0 and len(weight) > 1:
            random += 1
            assert not torch.equal(shards[0][name], shards[1][name]), name
    assert random > 10


def test_ddp_keeps_everything_on_each_rank(two_ranks):
    shards = [torch.load(two_ranks / "ddp" / f"rank{rank}.pt")["shards"] for rank in range(2)]
    assert all(torch.equal(shards[0][name], shards[1][name]) for name in shards[0])


def test_one_rank_shows_what_each_layer_did(two_ranks):
    (events,) = (two_ranks / "fsdp_run").glob("tb/*")
    board = EventAccumulator(str(events), size_guidance={"histograms": 0}).Reload()
    for layer in range(2):
        name = f"attention/layer{layer}/admitted_tiles"
        assert [event.step for event in board.Histograms(name)] == [0, 3, 6]


def test_a_signal_to_one_rank_stops_all_at_one_step(two_ranks):
    assert [torch.load(two_ranks / f"stopped_at_{rank}.pt") for rank in range(2)] == [2, 2]
    assert complete_steps(two_ranks / "stopped" / "checkpoint") == [2]


def test_one_process_goes_on_where_two_stopped(two_ranks, exact):
    config = tiny(two_ranks / "stopped", attention=Dense(), local_batch_size=4)
    assert_as_exact_as_plain(*run(config), exact, first_step=3)


def test_batch_sizes_that_do_not_divide_are_refused(tmp_path):
    with pytest.raises(ValueError, match="global_batch_size is 6, not a multiple of .* 4 x 1"):
        tiny(tmp_path, global_batch_size=6).build()


def test_ranks_agree_on_the_break_even_that_one_measured(two_ranks, tmp_path):
    (even, losses), other = (torch.load(two_ranks / f"annealed_{rank}.pt") for rank in range(2))
    assert (even, losses) == other and 0 <= even <= 1 - 3 / 8
    sparsity = SparsityConfig(schedule=FallingTiles(dense_steps=1, by=1, every=1), break_even=even)
    numbers, _ = run(tiny(tmp_path, sparsity=sparsity))
    _, _, plain_error, _ = exactly(SPARSE)  # of the same slot without a schedule
    assert distance(losses, [loss for loss, _ in numbers]) <= 2 * plain_error


@pytest.mark.parametrize("name", ["dit", "wan"])
def test_two_processes_distil_as_one_does(two_ranks, tmp_path, name):
    """Weights and their average, too, which is no further from them than they are."""
    model = {"model": WAN} if name == "wan" else {}
    result, other = (torch.load(two_ranks / name / f"rank{rank}.pt") for rank in range(2))
    assert result["numbers"] == other["numbers"]
    numbers, weights = run(tiny(tmp_path, loss=VelocityDistillation(weight=0.7), **model))
    *_, plain_error, weights_error = exactly(SPARSE, **model)  # of the same without a teacher
    assert distance(result["numbers"], numbers) <= 2 * plain_error
    for kind in ("model", "ema"):
        of_kind = {key: x for key, x in weights.items() if key.startswith(f"{kind}.")}
        assert of_kind and distance(of_kind, result["weights"]) <= 2 * weights_error
