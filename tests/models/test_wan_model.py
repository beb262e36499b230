"""The Wan transformer is diffusers', output and gradients: as exact in each dtype as theirs is."""

import math

import pytest
import torch
from diffusers import WanTransformer3DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_accurate, seeds
from small_wan import (
    draw_batch,
    everything_in_fp64,
    exact_twin_of,
    gradients,
    small_wan,
    twin_of,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.wan.formats import to_key

TEXT, IMAGE = {}, dict(in_channels=9, image_dim=64)
KINDS = {"text": TEXT, "image": IMAGE, "two images": IMAGE | dict(pos_embed_seq_len=6)}
WORDS = 512  # diffusers takes the last 512 tokens for the text's where there is a picture


def in_dtype(model, precision):
    """As diffusers loads a model in bf16 ("mixed"), or all of it in one dtype."""
    kept = WanTransformer3DModel._keep_in_fp32_modules if precision == "mixed" else []
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    for name, parameter in model.named_parameters():
        if not set(kept) & set(to_key(name, "diffusers").split(".")):
            parameter.data = parameter.data.to(dtype)
    return model, dtype


def results(model, x, t, *conditions):
    """Velocity, then the gradients of all weights, by diffusers' names, and of all inputs but t."""
    inputs = [y.detach().requires_grad_() for y in (x, *conditions)]
    if isinstance(model, WanTransformer3DModel):
        image = inputs[2:]
        if model.config.pos_embed_seq_len:  # theirs come as a batch of twice as many
            image = [y.unflatten(1, (2, -1)).flatten(0, 1) for y in image]
        velocity = model(inputs[0], 1000 * t.double(), inputs[1], *image).sample
        found = gradients(model, velocity, inputs)
    else:
        velocity = model(inputs[0], t, *inputs[1:])
        found = {to_key(n, "diffusers"): g for n, g in gradients(model, velocity, inputs).items()}
    return [velocity, *(found[name] for name in sorted(found))]


@pytest.mark.parametrize("kind", KINDS)
@given(
    # Fewer tokens than 8 leave nothing to measure: gradients cancel to the last bit, or not.
    grid=st.tuples(*[st.integers(1, 5)] * 3).filter(lambda grid: math.prod(grid) >= 8),
    heads=st.sampled_from([(2, 16), (1, 48), (3, 16), (2, 32), (3, 32)]),
    precision=st.sampled_from(["fp32", "mixed", "bf16"]),
    batch=st.integers(1, 2),
    seed=seeds,
)
@settings(max_examples=12)
def test_it_is_the_model_of_diffusers(kind, grid, heads, precision, batch, seed):
    number, head_dim = heads
    shape = dict(dim=number * head_dim, heads=number, out_channels=3)
    model = small_wan(grid, seed=seed, **shape, **KINDS[kind])
    model, dtype = in_dtype(model, precision)
    words = WORDS if kind != "text" else 7
    x, t, *conditions = draw_batch(model.config, batch, seed, words)
    x, *conditions = (y.to(dtype) for y in (x, *conditions))
    ours, plain = (results(m, x, t, *conditions) for m in (model, twin_of(model)))
    with sdpa_kernel(SDPBackend.MATH):  # the error of one way can be small by luck
        another = results(twin_of(model), x, t, *conditions)
    with everything_in_fp64():
        x, *conditions = (y.double() for y in (x, *conditions))
        exact = results(exact_twin_of(model), x, t, *conditions)
    assert_accurate(ours, [plain, another], exact)
