"""The average's law, against its own definition in fp64, and that applying it leaves no trace."""

import copy

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from trainer_runs import tiny, weights

from train.weights.ema import EMA


def averaged(decay, steps, seed, dtype):
    """The definition, in plain PyTorch: average and weights after random steps."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(50, generator=generator).to(dtype)
    average = weight.clone()
    for step in range(1, steps + 1):
        weight = weight + torch.randn(50, generator=generator).to(dtype)
        d = min(decay, (1 + step) / (10 + step))
        average = d * average + (1 - d) * weight
    return average, weight


@given(st.sampled_from([0.0, 0.5, 0.9, 0.9999]), st.integers(1, 40), st.integers(0, 2**31))
def test_the_average_is_as_exact_as_its_definition(decay, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    model = nn.ParameterList([torch.randn(50, generator=generator)])
    ema = EMA.Config(decay=decay).build(model=model)
    for step in range(1, steps + 1):
        with torch.no_grad():
            model[0].add_(torch.randn(50, generator=generator))
        ema.update(step)
    (average,) = ema.average.values()
    exact, _ = averaged(decay, steps, seed, torch.float64)
    plain, weight = averaged(decay, steps, seed, torch.float32)
    assert torch.equal(model[0], weight)
    rounding = torch.finfo(torch.float32).eps * exact.norm()
    assert (average - exact).norm() <= 2 * max((plain - exact).norm(), rounding)
    if decay == 0:
        assert torch.equal(average, model[0])


def test_constant_weights_are_their_own_average():
    model = nn.Linear(7, 5)
    ema = EMA.Config().build(model=model)
    before = copy.deepcopy(ema.average)
    for step in range(1, 20):
        ema.update(step)
    assert all(torch.equal(ema.average[name], before[name]) for name in before)


def test_applied_swaps_and_swaps_back_bit_for_bit(tmp_path):
    trainer = tiny(tmp_path, steps=2).build()
    trainer.train()
    before = weights(trainer)
    names = [name.removeprefix("ema.") for name in before if name.startswith("ema.")]
    with trainer.ema.applied():
        within = weights(trainer)
    after = weights(trainer)
    trainer.close()
    assert all(torch.equal(within[f"model.{n}"], before[f"ema.{n}"]) for n in names)
    assert not all(torch.equal(within[f"model.{n}"], before[f"model.{n}"]) for n in names)
    assert all(torch.equal(after[name], before[name]) for name in before)
