"""What sparse attention changes: the numbers are what they are said to be."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import EPS, assert_accurate, seeds, tilings
from small_models import SMALL, as_dtype, run
from small_pipelines import PIPELINES

from flexsparse import Mass, VideoTiling, reference
from flexsparse.diffusers import BSA, VSA, sparsify
from flexsparse.diffusers.generate.compare.observe import latents_of, observed
from flexsparse.diffusers.generate.compare.results import Quality, decibels, mean_squares
from flexsparse.diffusers.generate.compare.share import held_share
from flexsparse.diffusers.generate.pipeline import processors_of

VSA_METHOD = VSA(top_k=1, tile=(2, 2, 2), gates=False)
BSA_METHOD = BSA(sparsity=0.5, keep=0.5, window=(1, 2, 2), tile=(2, 2, 2))
methods = pytest.mark.parametrize("method", [VSA_METHOD, BSA_METHOD], ids=["vsa", "bsa"])
families = pytest.mark.parametrize("name", PIPELINES)


def relative(found, wanted):
    return (found - wanted).norm() / wanted.norm()


def assert_same(found, by_hand):
    """Reported numbers, as single precision has them, and what fp64 and fp32 make of the same."""
    dtypes = torch.float64, torch.float32
    exact, plain = (torch.stack([x.to(d) for x in by_hand(d)]) for d in dtypes)
    assert_accurate([found.float()], [[plain]], [exact])


def compared(name, method):
    """A family's pipeline run sparse and observed, of its first size: both latents."""
    small = PIPELINES[name]
    pipe = small.build(SMALL[name].model(0))
    own = [processors_of(pipe.transformer)]
    sparsify(pipe.transformer, method)
    models = [pipe.transformer]
    with latents_of(models) as sparse:
        made = small.clip(pipe, small.sizes[0])
    with observed(models, own) as dense:
        wanted = small.clip(pipe, small.sizes[0])
    again = small.clip(pipe, small.sizes[0])
    assert torch.equal(again, made), "and it is as it was"
    layers = len(own[0])
    return Quality.of(dense.steps, sparse.steps, layers), dense.steps, wanted, made


@families
@methods
def test_the_dense_clip_is_dense_and_the_models_error_is_that_of_two_calls(name, method):
    small = PIPELINES[name]
    found, steps, wanted, made = compared(name, method)
    pipe = small.build(SMALL[name].model(0))
    calls = []
    hook = pipe.transformer.register_forward_hook(
        lambda model, args, kwargs, out: calls.append((args, kwargs, out)), with_kwargs=True
    )
    assert torch.equal(small.clip(pipe, small.sizes[0]), wanted)
    hook.remove()
    sparsify(pipe.transformer, method)
    with torch.no_grad():
        beside = [pipe.transformer(*args, **kwargs)[0] for args, kwargs, _ in calls]
    per_step = len(calls) // len(steps)
    outs = [out[0] for *_, out in calls]

    def by_hand(dtype):
        for at in range(0, len(calls), per_step):
            a, b = (torch.stack(x[at : at + per_step]).to(dtype) for x in (beside, outs))
            yield relative(a, b)

    assert_same(found.output, by_hand)
    assert len(steps) == 2 and found.levels[0] > found.levels[1] and found.levels[0] <= 1
    assert found.latents[0] == torch.inf and found.latents[1].isfinite()
    assert ((0 < found.held) & (found.held <= 1)).all() and (found.attention > 0).all()
    assert not torch.equal(made, wanted)


@pytest.mark.parametrize("name", SMALL)
def test_every_familys_video_is_what_is_compared(name):
    """One call: another video is another latent, and each sparse layer differs in the video."""
    grid, small = (4, 4, 4), SMALL[name]
    model, batch = small.model(0), small.batch(grid, 0)
    own = processors_of(model)
    sparsify(model, VSA_METHOD)
    with torch.no_grad(), observed([model], [own]) as watch:
        run(model, batch)
    (step,) = watch.steps
    noisy = batch["vision_tokens"][0] if name == "cosmos3" else batch["hidden_states"]
    assert torch.equal(step.latent, noisy) and 0 < step.level < 1
    found = Quality.of(watch.steps, watch.steps, len(own))
    assert (found.attention > 0).all() and (found.held < 1).all() and found.output > 0


@methods
@given(st.tuples(st.integers(2, 4), st.integers(2, 4), st.integers(3, 5)), seeds)
@settings(max_examples=3)
def test_a_layers_error_and_shares_are_the_oracles(method, grid, seed):
    small = SMALL["wan"]
    model, batch = small.model(seed % 100), small.batch(grid, seed % 1000)
    own = processors_of(model)
    sparsify(model, method)
    slots = [block.attn1.slot for block in model.blocks]
    calls = []
    with observed([model], [own]) as watch, torch.no_grad():
        hooks = [s.register_forward_pre_hook(lambda s, given: calls.append(given)) for s in slots]
        model(**batch)
        for hook in hooks:
            hook.remove()
    (step,) = watch.steps
    rows = step.row(2)
    for number, (slot, (_, q, k, v, tiling, *_)) in enumerate(zip(slots, calls)):
        choice = slot.choose(q, k, tiling)
        weight, bias = (x.detach() for x in model.blocks[number].attn1.to_out[0].parameters())

        def by_hand(dtype, q=q, k=k, v=v, tiling=tiling, choice=choice, out=(weight, bias)):
            q, k, v = (tiling.from_tiles(x).to(dtype) for x in (q, k, v))
            shape = dict(tile_map=choice.tile_map, dtype=dtype)
            if isinstance(method, VSA):
                sparse = reference.vsa(q, k, v, grid, tiling.tile, top_k=0, **shape)
            else:
                kept = tiling.from_tiles(choice.kept[..., None])[..., 0].bool()
                options = dict(keep=0.5, window=method.window, kept=kept)
                sparse = reference.bsa(q, k, v, grid, tiling.tile, **options, **shape)
            dense = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
            pair = (x.transpose(1, 2).flatten(2) @ out[0].to(dtype).mT for x in (sparse, dense))
            a, b = (x + out[1].to(dtype) for x in pair)
            return [relative(a, b)]

        assert_same(rows[number, 0][None], by_hand)
        assert rows[number, 1].item() == pytest.approx(choice.tile_map.double().mean().item())
        kept = choice.kept[..., tiling.valid()].double().mean().item()
        assert rows[number, 2].item() == pytest.approx(kept)
        held = held_by_hand(q, k, tiling, choice.tile_map)
        assert rows[number, 3].item() == pytest.approx(held.item(), rel=1e-5)


def held_by_hand(q, k, tiling, tile_map, lengths=None):
    """In raster order, in fp64, of whole matrices: tokens know their tile by the layout."""
    q, k = (tiling.from_tiles(x).double() for x in (q, k))
    weights = q @ k.mT / q.shape[-1] ** 0.5
    tile_of = torch.arange(tiling.key_tiles).repeat_interleave(tiling.rows)
    tile_of = tiling.from_tiles(tile_of[:, None])[:, 0]
    video = tiling.of_video.tokens
    if lengths is not None:
        beyond = torch.arange(tiling.tokens) >= video + lengths[:, None]
        weights = weights.masked_fill(beyond[:, None, None], -torch.inf)
    weights = weights.softmax(-1)[:, :, :video]
    chosen = tile_map[:, :, tile_of[:video]][..., tile_of[:video]].double()
    text = torch.ones(*chosen.shape[:3], tiling.text, dtype=chosen.dtype)
    of_query = (weights * torch.cat((chosen, text), -1)).sum(-1)
    of_tile = [of_query[..., tile_of[:video] == tile].mean(-1) for tile in range(tiling.num_tiles)]
    return torch.stack(of_tile).mean()


@given(tilings(5).filter(lambda t: t.padded_tokens <= 1024), st.integers(0, 9), seeds)
@settings(max_examples=20)
def test_the_weight_that_is_held_is_the_softmaxs(tiling, text, seed):
    tiling = replace(tiling, text=text)
    torch.manual_seed(seed)
    q, k = torch.full((2, 2, 2, tiling.padded_tokens, 16), torch.nan)
    valid = tiling.valid()
    q[:, :, valid], k[:, :, valid] = torch.randn(2, 2, 2, int(valid.sum()), 16)
    n = tiling.num_tiles
    tile_map = torch.rand(2, 2, n, n) < 0.5
    lengths = torch.tensor([text, text // 2]) if text else None
    found = held_share(q.nan_to_num(), k, tiling, tile_map, lengths)
    wanted = held_by_hand(q, k, tiling, tile_map, lengths)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-6)
    everything = torch.ones_like(tile_map)
    assert held_share(q, k, tiling, everything, lengths).item() == pytest.approx(1)
    nothing = held_share(q, k, tiling, ~everything, lengths)
    assert nothing.item() == 0 or text


def test_of_many_query_tiles_some_are_looked_at_evenly():
    tiling = VideoTiling((4, 4, 10), (2, 2, 1))
    n = tiling.num_tiles
    q = torch.zeros(1, 1, tiling.padded_tokens, 16)  # each key has the same weight
    tile_map = (torch.arange(n)[:, None] <= torch.arange(n)).mT[None, None]  # row i holds i + 1
    found = held_share(q, q, tiling, tile_map, most=3)
    rows = [1, (n - 1) // 2 + 1 + ((n - 1) % 2 > 0 and round((n - 1) / 2) - (n - 1) // 2), n]
    assert found.item() == pytest.approx(sum(rows) / 3 / n)


@families
@pytest.mark.parametrize(
    "method", [VSA(sparsity=0.0, gates=False), BSA(kv=Mass(1), keep=1.0)], ids=["vsa", "bsa"]
)
def test_with_all_tiles_nothing_is_left_but_rounding(name, method):
    found, *_ = compared(name, replace(method, tile=(2, 2, 2)))
    for shares in (found.tiles, found.queries):
        assert (shares == 1).all()
    assert torch.allclose(found.held, torch.ones_like(found.held), atol=1e-6)
    small, calls = PIPELINES[name], []
    pipe = small.build(SMALL[name].model(0))
    hook = pipe.transformer.register_forward_hook(
        lambda model, args, kwargs, out: calls.append((kwargs, out[0])), with_kwargs=True
    )
    small.clip(pipe, small.sizes[0])
    hook.remove()
    pipe.transformer.double()
    per_step = len(calls) // 2
    wide = [{n: as_dtype(x, torch.float64) for n, x in given.items()} for given, _ in calls]
    with torch.no_grad():
        exact = torch.stack([pipe.transformer(**given)[0] for given in wide[:per_step]])
    plain = torch.stack([out for _, out in calls[:per_step]])
    # two results that are each right, as the rule of tolerance has it
    errors = 2 * (plain - exact).square().mean().sqrt() + EPS * exact.abs().max()
    bound = 2 * (errors / exact.square().mean().sqrt() + EPS)
    assert found.output[0] <= bound and found.attention.max() <= bound


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
