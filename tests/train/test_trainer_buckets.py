"""Training on clips of several sizes: exact, on any number of ranks, with a program for each."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bucket_runs import SIZES, bucketed
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from trainer_runs import finish, plain_run, run, start, tiny

from train.registry import load_config
from train.sparsity.annealing import SparsityConfig
from train.sparsity.schedules import DenseWarmup, FallingTiles


def distance(ours, exact):
    """Euclidean, over all weights (or numbers) together, in fp64."""
    if isinstance(exact, dict):
        assert exact.keys() <= ours.keys()
        return sum(distance(ours[key], exact[key]) ** 2 for key in exact) ** 0.5
    return (torch.as_tensor(ours).double() - torch.as_tensor(exact).double()).norm().item()


def test_two_processes_and_one_that_goes_on_equal_plain_pytorch(tmp_path):
    exact, plain = (plain_run(bucketed("unused"), x) for x in (torch.float64, torch.float32))
    finish(start(str(Path(__file__).with_name("bucket_runs.py")), str(tmp_path / "run"), ranks=2))
    numbers, weights = run(bucketed(tmp_path / "run", local_batch_size=4, global_batch_size=4))
    assert len(numbers) == 3, "it goes on at step 4"
    rounding = torch.tensor(exact[0]).norm().item() * torch.finfo(torch.float32).eps
    assert distance(numbers, exact[0][3:]) <= 2 * max(distance(plain[0], exact[0]), rounding)
    assert distance(weights, exact[1]) <= 2 * distance(plain[1], exact[1])


def test_as_many_programs_as_sizes(tmp_path, monkeypatch):
    """Of a block, forward; its backward goes with it."""
    counter, compile = CompileCounterWithBackend("eager"), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda m, **o: compile(m, backend=counter, **o))
    torch._dynamo.reset()
    config = bucketed(tmp_path, compile=True, local_batch_size=1, steps=14)
    trainer = config.build()
    seen, forward = [], trainer.model.forward
    trainer.model.forward = lambda x, *rest: seen.append(x.shape[2:]) or forward(x, *rest)
    trainer.train()
    trainer.close()
    torch._dynamo.reset()
    assert set(map(tuple, seen)) == set(SIZES) and len(seen) == 14
    assert counter.frame_count == len(SIZES)


def test_sizes_are_an_option():
    flat = [str(x) for size in SIZES for x in size]
    argv = ["--module", "models.wan", "--config", "debug_vsa_adapt", "--dataloader.buckets", *flat]
    assert load_config(argv).dataloader.buckets == SIZES


def refused(config):
    with pytest.raises(ValueError) as error:
        config.build()
    (line,) = str(error.value).splitlines()
    return line


def test_what_takes_one_size_refuses_several_before_anything_is_written(tmp_path):
    config = tiny(tmp_path / "run")
    config.dataloader = replace(config.dataloader, buckets=((2, 32, 32), (2, 32, 48)))
    assert "buckets are 2 sizes, but VideoDiTConfig is built for one: leave out" in refused(config)
    falling = SparsityConfig(schedule=FallingTiles(), break_even=0.0)
    assert "sparsity.schedule counts the tiles of one" in refused(
        bucketed(tmp_path / "run", sparsity=falling)
    )
    config = bucketed(tmp_path / "run")
    config.model = replace(config.model, video=(4, 32, 32))
    assert "model.video is (4, 32, 32), but the dataloader's buckets are" in refused(config)
    assert not (tmp_path / "run").exists()


def test_one_bucket_and_a_warmup_are_not_refused(tmp_path):
    config = tiny(tmp_path / "one", steps=1)
    config.dataloader = replace(config.dataloader, buckets=((2, 32, 32),), num_frames=9)
    assert len(run(config)[0]) == 1
    warm = SparsityConfig(schedule=DenseWarmup(steps=3))
    assert len(run(bucketed(tmp_path / "warm", sparsity=warm))[0]) == 6
