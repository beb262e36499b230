"""Wan with sparse attention: the dense model as its limit, any size of latent, unseen padding."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from laws import assert_accurate, seeds
from small_wan import draw_batch, gradients, small_wan

from flexsparse import VideoTiling
from models.attention import BSA, VSA, Dense

grids = st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 9))
tiles = st.tuples(*[st.integers(1, 4)] * 3)
images = st.sampled_from([None, 24])


@given(grids, tiles, images, seeds, st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=10)
def test_with_all_tiles_an_adapted_model_is_the_dense_one(grid, tile, image_dim, seed, dtype):
    dense = small_wan(grid, Dense(), seed, image_dim=image_dim).to(dtype)
    sparse = replace(dense.config, attention=VSA(sparsity=0.0, tile=tile, adapt=True)).build()
    missing, unexpected = sparse.load_state_dict(dense.state_dict(), strict=False)
    gates = [f"self_attn.slot.gate_coarse.{kind}" for kind in ("weight", "bias")]
    assert missing == [f"layers.{i}.{gate}" for i in dense.layers for gate in gates]
    assert not unexpected
    x, t, *conditions = draw_batch(dense.config, seed=seed)
    inputs = [y.to(dtype) for y in (x, *conditions)]
    results = []
    for model in (sparse.to(dtype), dense, deepcopy(dense).double()):
        x, *conditions = (y.to(next(model.parameters()).dtype) for y in inputs)
        velocity = model(x, t, *conditions)
        found = gradients(model, velocity)
        results.append([velocity, *(found[name] for name in dense.state_dict())])
    ours, eager, exact = results
    assert_accurate(ours, [eager], exact)


@pytest.mark.parametrize(
    "attention",
    [
        Dense(),
        VSA(sparsity=0.6, tile=(2, 3, 2)),
        VSA(sparsity=0.7, tile=None, adapt=True),
        BSA(sparsity=0.5, tile=(2, 2, 2), window=(1, 2, 2)),
    ],
    ids=["dense", "vsa", "vsa-fit", "bsa"],
)
@given(grids, grids, seeds)
@settings(max_examples=5)
def test_a_model_takes_any_size_as_one_built_for_it_would(attention, grid, other, seed):
    model = small_wan(grid, attention, seed)
    video = (other[0], 2 * other[1], 2 * other[2])
    built = replace(model.config, video=video).build()
    built.load_state_dict(model.state_dict())
    batch = draw_batch(built.config, seed=seed)
    velocity = model(*batch)
    assert velocity.shape == batch[0].shape and velocity.isfinite().all()
    assert torch.equal(velocity, built(*batch))


class Soil:
    """A pre-hook on the first block: overwrites the padded rows of tokens and rotary table."""

    def __init__(self, value: float, seed: int):
        self.value, self.seed = value, seed

    def __call__(self, module, args):
        x, modulation, text, image, rotary, tiling, *rest = args
        torch.manual_seed(self.seed)
        padding = ~tiling.valid()[:, None]
        x, rotary = (torch.where(padding, self.value * torch.randn_like(y), y) for y in (x, rotary))
        return x, modulation, text, image, rotary, tiling, *rest


slots = st.sampled_from([VSA(0.5), VSA(0.5, adapt=True), BSA(0.5, keep=0.6, window=None)])


@given(grids, tiles, slots, images, seeds)
@settings(max_examples=10)
def test_no_output_and_no_gradient_depends_on_padding(grid, tile, slot, image_dim, seed):
    assume(VideoTiling(grid, tile).has_padding)
    model = small_wan((2, 3, 4), replace(slot, tile=tile), seed, image_dim=image_dim)
    config = replace(model.config, video=(grid[0], 2 * grid[1], 2 * grid[2]))
    batch = draw_batch(config, seed=seed)
    clean = model(*batch)
    wanted = gradients(model, clean)
    for value in (1e4, torch.nan):
        soil = model.layers["0"].register_forward_pre_hook(Soil(value, seed))
        dirty = model(*batch)
        assert torch.equal(dirty, clean)
        if value == 1e4:  # a weight's own gradient is a product over all rows, where 0 * NaN is NaN
            for (name, gradient), same in zip(wanted.items(), gradients(model, dirty).values()):
                assert torch.equal(gradient, same), name
        soil.remove()
