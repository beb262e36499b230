"""What sparse attention changes: the numbers are what they are said to be."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import EPS, assert_accurate, seeds
from small_wan import small_wan

from flexsparse import reference
from models.attention import BSA, VSA, Dense
from models.wan.generate.quality.measure import compare, decibels, mean_squares
from models.wan.generate.sampling import dense, sample, schedule

VSA_SLOT = VSA(top_k=1, tile=(2, 2, 2), gates=False)
BSA_SLOT = BSA(sparsity=0.5, keep=0.5, window=(1, 2, 2), tile=(2, 2, 2))
slots = pytest.mark.parametrize("slot", [VSA_SLOT, BSA_SLOT], ids=["vsa", "bsa"])
grids = st.tuples(st.integers(2, 4), st.integers(2, 4), st.integers(3, 5))  # 2 tiles or more
samplers = st.sampled_from(["unipc", "euler"])
guidances = st.sampled_from([1.0, 3.0])
EAGER = torch.float32


def draw(grid, slot, seed, guidance, dtype=torch.float64):
    """A model, noise, and one or two texts, that is, with guidance or without."""
    model = small_wan(grid, slot, seed, layers=2).to(dtype)
    noise, texts = torch.randn(1, 4, *model.config.video), torch.randn(2, 1, 5, 8)
    negative = None if guidance == 1 else texts[1].to(dtype)
    return model, noise.to(dtype), texts[0].to(dtype), negative


def dense_twin(model):
    """The same weights with torch's own attention, in raster order."""
    twin = replace(model.config, attention=Dense()).build().to(model.head.head.weight.dtype)
    twin.load_state_dict(model.state_dict())
    return twin


def relative(found, wanted):
    return (found - wanted).norm() / wanted.norm()


def assert_same(found, by_hand):
    """Reported numbers, as single precision has them, and what fp64 and fp32 make of the same."""
    exact, plain = (torch.stack([x.to(d) for x in by_hand(d)]) for d in (torch.float64, EAGER))
    assert_accurate([found.to(EAGER)], [[plain]], [exact])


@slots
@given(grids, seeds, samplers, guidances)
@settings(max_examples=3)
def test_velocities_and_clean_latents_are_those_of_two_samplings(slot, grid, seed, name, guidance):
    model, noise, text, negative = draw(grid, slot, seed, guidance)
    found = compare(
        model, noise, text, negative, steps=3, sampler=name, shift=3.0, guidance=guidance
    )

    @torch.no_grad()
    def velocity(of, x, t):
        time = (t.float() / 1000)[None]
        positive = of(x, time, text)
        if negative is None:
            return positive
        other = of(x, time, negative)
        return (1 - guidance) * other + guidance * positive

    def trajectory(of):
        x, scheduler, passed = noise, schedule(name, 3, 3.0, noise.device), []
        for t in scheduler.timesteps:
            passed.append((x, velocity(of, x, t)))
            x = scheduler.step(passed[-1][1], t, x, return_dict=False)[0]
        return passed, scheduler

    (at, scheduler), (sparse_at, _) = trajectory(dense_twin(model)), trajectory(model)
    beside = [velocity(model, x, t) for (x, _), t in zip(at, scheduler.timesteps)]
    assert_same(
        found.velocity,
        lambda d: [relative(s.to(d), v.to(d)) for s, (_, v) in zip(beside, at)],
    )

    def psnr(dtype):
        for level, (x, v), (y, w) in zip(scheduler.sigmas.double(), at, sparse_at):
            wanted, other = (x - level * v).to(dtype), (y - level * w).to(dtype)
            span = wanted.max() - wanted.min()
            yield 20 * span.log10() - 10 * (wanted - other).square().mean().log10()

    assert_same(found.clean, lambda d: list(psnr(d)))
    assert torch.equal(found.levels, scheduler.sigmas[:3].double())
    assert all(block.self_attn.slot.kv_rule is not None for block in model.layers.values())


def calls_of(model, noise, text, negative):
    """What each layer's slot is called with in the first dense pass: by text, then by layer."""
    calls = []
    hooks = [
        block.self_attn.slot.register_forward_pre_hook(lambda slot, args: calls.append(args))
        for block in model.layers.values()
    ]
    time = schedule("euler", 2, 3.0, noise.device).timesteps[:1].float() / 1000
    with torch.no_grad(), dense(model, len(model.layers)):
        for given_text in (text, negative):
            model(noise, time, given_text)
    for hook in hooks:
        hook.remove()
    return calls[: len(model.layers)], calls[len(model.layers) :]


@slots
@given(grids, seeds)
@settings(max_examples=3)
def test_a_layers_error_and_shares_are_the_oracles(slot, grid, seed):
    model, *inputs = draw(grid, slot, seed, 3.0)
    found = compare(model, *inputs, steps=2, sampler="euler", shift=3.0, guidance=3.0)
    for number, calls in enumerate(zip(*calls_of(model, *inputs))):
        tiling = calls[0][-1]
        modules = list(model.layers.values())
        choices = [modules[number].self_attn.slot.choose(q, k, tiling) for _, q, k, _, _ in calls]

        def by_hand(dtype, calls=calls, choices=choices, tiling=tiling):
            off, all_of = [], []
            for (_, *qkv, _), choice in zip(calls, choices):
                q, k, v = (tiling.from_tiles(x).to(dtype) for x in qkv)
                shape = dict(tile_map=choice.tile_map, dtype=dtype)
                if isinstance(slot, VSA):
                    sparse = reference.vsa(q, k, v, grid, tiling.tile, top_k=0, **shape)
                else:
                    kept = tiling.from_tiles(choice.kept[..., None])[..., 0].bool()
                    options = dict(keep=0.5, window=slot.window, kept=kept)
                    sparse = reference.bsa(q, k, v, grid, tiling.tile, **options, **shape)
                wanted = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
                off.append(sparse - wanted)
                all_of.append(wanted)
            return [torch.stack(off).norm() / torch.stack(all_of).norm()]

        assert_same(found.attention[0, number][None], by_hand)
        maps = torch.stack([choice.tile_map for choice in choices]).double()
        assert found.tiles[0, number] == pytest.approx(maps.mean().item())
        kept = torch.stack([choice.kept for choice in choices])[..., tiling.valid()].double()
        assert found.queries[0, number] == pytest.approx(kept.mean().item())


@slots
@pytest.mark.parametrize("steps, layers", [(0, 1), (2, 0), (1, 1)])
@given(grids, seeds, samplers)
@settings(max_examples=2)
def test_both_latents_are_what_sampling_gives_and_dense_cells_are_zero(
    slot, steps, layers, grid, seed, name
):
    model, *inputs = draw(grid, slot, seed, 3.0, torch.float32)
    options = dict(steps=3, sampler=name, shift=3.0, guidance=3.0)
    found = compare(model, *inputs, **options, dense_steps=steps, dense_layers=layers)
    assert torch.equal(found.dense, sample(model, *inputs, **options, dense_layers=2))
    mixed = sample(model, *inputs, **options, dense_steps=steps, dense_layers=layers)
    assert torch.equal(found.sparse, mixed)
    is_dense = (torch.arange(3)[:, None] < steps) | (torch.arange(2) < layers)
    assert torch.equal(found.attention == 0, is_dense)
    assert torch.equal(found.velocity == 0, is_dense.all(1))
    for shares in (found.tiles, found.queries):
        assert (shares[is_dense] == 1).all() and ((0 < shares) & (shares <= 1)).all()
    pairs = found.tiles * found.queries
    assert (pairs[~is_dense] < 1).all()
    equal_so_far = is_dense.all(1).int().cumprod(0).bool()
    assert torch.equal(found.clean == torch.inf, equal_so_far)


def allowed(plain, exact):
    """How far two results may be apart that are each right, as the rule of tolerance has it."""
    errors = 2 * (plain - exact).square().mean().sqrt() + EPS * exact.abs().max()
    return 2 * (errors / exact.square().mean().sqrt() + EPS)


@pytest.mark.parametrize("slot", [VSA(sparsity=0.0, gates=False), BSA(sparsity=0.0, keep=1.0)])
@given(grids, seeds)
@settings(max_examples=3)
def test_with_all_tiles_nothing_is_left_but_rounding(slot, grid, seed):
    slot = replace(slot, tile=(2, 2, 2))
    model, *inputs = draw(grid, slot, seed, 3.0, torch.float32)
    found = compare(model, *inputs, steps=2, sampler="euler", shift=3.0, guidance=3.0)
    assert (found.tiles == 1).all() and (found.queries == 1).all()
    time = schedule("euler", 2, 3.0, inputs[0].device).timesteps[:1].float() / 1000
    velocities = []
    for dtype in (torch.float32, torch.float64):
        twin = dense_twin(model).to(dtype)
        noise, *texts = (x.to(dtype) for x in inputs)
        with torch.no_grad():
            positive, other = (twin(noise, time, x) for x in texts)
        velocities.append(other + 3.0 * (positive - other))
    assert found.velocity[0] <= allowed(*velocities)
    for number, calls in enumerate(zip(*calls_of(model, *inputs))):
        tiling, outs = calls[0][-1], []
        for dtype in (torch.float32, torch.float64):
            each = [[tiling.from_tiles(x).to(dtype) for x in (q, k, v)] for _, q, k, v, _ in calls]
            outs.append(torch.stack([(q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
                                     for q, k, v in each]))  # fmt: skip
        assert found.attention[0, number] <= allowed(*outs)


def test_a_velocity_that_is_not_finite_is_named():
    model, *inputs = draw((2, 3, 4), VSA_SLOT, 0, 1.0)
    model.layers["1"].ffn[0].bias.data[0] = torch.inf
    with pytest.raises(ValueError, match="noise level 1 the model's velocity is not"):
        compare(model, *inputs, steps=2, sampler="euler", shift=3.0, guidance=1.0)


@given(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)), seeds)
def test_psnr_is_the_formula(size, seed):
    torch.manual_seed(seed)
    a, b = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
    b[0, 0, 0] = 255 - a[0, 0, 0]  # never the same, 0 to 255 or more
    a[1:2] = b[1:2]

    def by_hand(dtype):
        for x, y in zip(a.to(dtype), b.to(dtype)):
            yield 20 * torch.tensor(255, dtype=dtype).log10() - 10 * (x - y).square().mean().log10()

    found = decibels(mean_squares(a, b), 255.0)
    assert (found[1:2] == torch.inf).all() and decibels(torch.zeros(()), 0.0) == torch.inf
    some = found.isfinite()
    assert_same(found[some], lambda d: [x for x in by_hand(d) if x.isfinite()])
