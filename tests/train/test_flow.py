"""Laws of the noise, the loss and the sampler."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.flow import FlowConfig, draw, flow_loss, sample, shifted

shifts = st.sampled_from([0.5, 1.0, 3.0, 5.0])
seeds = st.integers(0, 2**63)


@given(seeds, st.integers(1, 10**6), shifts, st.permutations(range(5)))
def test_a_clip_has_the_same_noise_wherever_it_is_computed(seed, step, shift, order):
    clips = torch.zeros(5, 3, 2, 4, 5)
    noise, t = draw(clips, seed=seed, step=step, positions=range(5), shift=shift)
    mixed, mixed_t = draw(clips, seed=seed, step=step, positions=order, shift=shift)
    assert torch.equal(mixed, noise[order]) and torch.equal(mixed_t, t[order])
    alone, alone_t = draw(clips[:1], seed=seed, step=step, positions=[3], shift=shift)
    assert torch.equal(alone[0], noise[3]) and torch.equal(alone_t[0], t[3])


@given(seeds, shifts)
def test_no_time_is_below_the_least(seed, shift):
    clips, key = torch.zeros(20, 1, 1, 1, 1), dict(seed=seed, step=1, positions=range(20))
    _, t = draw(clips, **key, shift=shift, least=0.3)
    _, plain = draw(clips, **key, shift=shift)
    assert t.min() >= 0.3 and torch.allclose(t, 0.3 + 0.7 * plain)


@given(seeds, shifts, st.floats(0, 0.5), st.floats(0.6, 1))
def test_times_are_between_their_bounds_in_the_same_order(seed, shift, least, most):
    clips, key = torch.zeros(20, 1, 1, 1, 1), dict(seed=seed, step=1, positions=range(20))
    _, t = draw(clips, **key, shift=shift, least=least, most=most)
    _, plain = draw(clips, **key, shift=shift)
    assert t.min() >= least and t.max() <= most
    assert torch.allclose(t, least + (most - least) * plain)


@pytest.mark.parametrize("least, most", [(0.5, 0.5), (0.6, 0.5), (-0.1, 1), (0, 1.1), (1, 1)])
def test_bounds_that_leave_no_times_are_refused(least, most):
    with pytest.raises(ValueError, match="0 <= least < most <= 1"):
        FlowConfig(least=least, most=most)


@given(seeds)
def test_no_two_clips_steps_or_seeds_share_noise(seed):
    clips = torch.zeros(3, 1, 2, 4, 4)
    keys = [(seed, 1), (seed, 2), (seed + 1, 1)]
    drawn = [draw(clips, seed=s, step=i, positions=range(3)) for s, i in keys]
    noise = torch.cat([n for n, _ in drawn]).flatten(1)
    assert len(noise.unique(dim=0)) == 9
    assert len(torch.cat([t for _, t in drawn]).unique()) == 9


def test_noise_is_standard_normal_and_times_are_uniform():
    clips = torch.zeros(4096, 1, 1, 4, 4)
    noise, t = draw(clips, seed=0, step=1, positions=range(4096))
    mean_error, deviation_error = 1 / noise.numel() ** 0.5, 1 / (2 * noise.numel()) ** 0.5
    assert abs(noise.mean()) < 4 * mean_error and abs(noise.std() - 1) < 4 * deviation_error
    assert t.min() >= 0 and t.max() < 1
    furthest = (t.sort().values - torch.linspace(0, 1, 4096)).abs().max()
    assert furthest < 1.95 / 4096**0.5  # Kolmogorov-Smirnov, one in a thousand


@given(shifts)
def test_a_shift_bends_towards_noise_and_keeps_the_ends(shift):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    bent = shifted(t, shift)
    assert bent[0] == 0 and bent[-1] == 1
    assert (bent.diff() > 0).all()
    assert ((bent - t)[1:-1].sign() == torch.tensor(shift - 1.0).sign()).all()


def test_the_true_velocity_has_no_loss():
    x0, context = torch.randn(2, 3, 2, 4, 4), torch.zeros(2, 1, 1)
    noise, t = draw(x0, seed=0, step=1, positions=range(2))
    assert (flow_loss(lambda *_: noise - x0, x0, context, noise, t) == 0).all()
    far = flow_loss(lambda *_: torch.full_like(x0, 2.0) + noise - x0, x0, context, noise, t)
    assert torch.equal(far.round(), torch.full((2,), 4.0))


@given(st.integers(1, 30), shifts, st.integers(0, 2**31))
def test_the_true_velocity_leads_from_noise_to_data(steps, shift, seed):
    x0 = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    still = torch.zeros_like(x0)

    def sampled(velocity):
        context = torch.zeros(2, 1, 1)
        return sample(velocity, context, x0.shape[1:], steps=steps, seed=seed, shift=shift)

    noise = sampled(lambda *_: still)
    clips = sampled(lambda *_: noise - x0)
    size = noise.abs().max() + x0.abs().max()  # each step rounds its length, velocity and sum
    assert (clips - x0).abs().max() <= 3 * steps * torch.finfo(torch.float32).eps * size


def test_the_sampler_starts_from_noise_keyed_by_seed_and_clip():
    def sampled(clips, seed):
        still = torch.zeros(clips, 3, 2, 4, 4)
        return sample(lambda *_: still, torch.zeros(clips, 1, 1), (3, 2, 4, 4), steps=2, seed=seed)

    four = sampled(4, 0)
    assert torch.equal(four[:2], sampled(2, 0))
    assert not torch.equal(four, sampled(4, 1))
    assert len(four.flatten(1).unique(dim=0)) == 4


def test_times_are_even_unless_a_shift_is_asked_for():
    seen = []

    def still(x, t, context):
        seen.append(t[0].item())
        return torch.zeros_like(x)

    sample(still, torch.zeros(1, 1, 1), (3, 1, 2, 2), steps=4)
    assert seen == [1.0, 0.75, 0.5, 0.25]
