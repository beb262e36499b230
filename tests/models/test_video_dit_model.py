"""What holds with every slot: how a fresh model starts and opens, its weights, dtypes, errors."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import seeds
from small_dit import draw_batch, gradients, small_model
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from flexsparse import Mass
from models.attention import BSA, VSA, Dense

SLOTS = [
    Dense(),
    VSA(top_k=2, tile=(2, 2, 2)),
    BSA(kv=Mass(0.7), tile=(2, 2, 2), window=(1, 2, 2)),
    VSA(top_k=2, tile=(2, 2, 2), adapt=True),
]
slots = pytest.mark.parametrize("attention", SLOTS, ids=["dense", "vsa", "bsa", "vsa-adapt"])


@slots
def test_a_fresh_model_says_zero_and_opens_from_the_head(attention):
    torch.manual_seed(0)
    model = small_model(attention=attention).config.build()
    x, t, context = draw_batch(model.config)
    embedded = []
    model.patch_in.register_forward_hook(lambda module, args, rows: embedded.append(rows))
    model.head.register_forward_pre_hook(lambda module, args: embedded.append(args[0]))
    assert not model(x, t, context).any()
    assert torch.equal(*embedded)

    awake = []
    for _ in range(3):
        model.zero_grad()
        (model(x, t, context) - x).square().mean().backward()
        awake.append({name for name, p in model.named_parameters() if p.grad.any()})
        with torch.no_grad():
            for p in model.parameters():
                p -= p.grad
    assert awake[0] == {"head.out.weight", "head.out.bias"}
    assert awake[1] >= {"modulation.weight", "layers.0.table", "layers.1.cross_attention.out.bias"}
    assert awake[2] == {name for name, _ in model.named_parameters()}


@slots
def test_every_video_has_its_own_output(attention):
    model = small_model(attention=attention)
    x, t, context = (y.requires_grad_() for y in draw_batch(model.config, batch=3))
    model(x, t, context)[1].square().sum().backward()
    for y in (x, t, context):
        assert y.grad[1].any()
        assert not y.grad[[0, 2]].any()


@given(st.tuples(*[st.integers(1, 7)] * 3), st.sampled_from(SLOTS[:3]), seeds)
@settings(max_examples=10)
def test_any_video_goes_through(grid, attention, seed):
    if isinstance(attention, VSA):
        attention = replace(attention, top_k=None, sparsity=0.5)
    pixels = (grid[0], 2 * grid[1], 3 * grid[2])
    model = small_model(pixels, attention, seed, patch=(1, 2, 3))
    assert model.grid == grid
    x, t, context = draw_batch(model.config, seed=seed)
    velocity = model(x, t, context)
    assert velocity.shape == x.shape
    assert velocity.isfinite().all()


@slots
def test_from_meta_to_the_same_weights(attention):
    config = small_model(attention=attention).config
    torch.manual_seed(7)
    built = config.build()
    with torch.device("meta"):
        model = config.build()
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    assert not list(model.buffers())
    torch.manual_seed(7)
    model.init_weights()
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, built.state_dict()[name]), name


def test_the_same_seed_gives_the_same_weights_whatever_the_slot():
    models = []
    for attention in SLOTS:
        config = small_model(attention=attention).config
        torch.manual_seed(7)
        models.append(config.build().state_dict())
    for name, weight in models[0].items():
        assert all(torch.equal(weight, other[name]) for other in models[1:]), name


@slots
def test_weights_fit_every_video(attention):
    model = small_model(attention=attention)
    longer = replace(model.config, video=(5, 6, 7)).build()
    longer.load_state_dict(model.state_dict())


@slots
def test_activation_checkpointing_changes_no_bit(attention):
    model = small_model(attention=attention)
    recomputed = deepcopy(model)
    for name, block in recomputed.layers.items():
        recomputed.layers[name] = checkpoint_wrapper(block)
    batch = draw_batch(model.config)
    wanted = gradients(model, model(*batch))
    got = gradients(recomputed, recomputed(*batch))
    for (name, gradient), same in zip(wanted.items(), got.values()):
        assert torch.equal(gradient, same), name


@slots
def test_weights_in_bf16_tell_times_apart_and_get_gradients(attention):
    model = small_model(attention=attention).to(torch.bfloat16)
    x, _, context = draw_batch(model.config)
    x, context = x[:1].repeat(2, 1, 1, 1, 1), context[:1].repeat(2, 1, 1)
    velocity = model(x, torch.tensor([0.9985, 0.9995]), context)
    assert velocity.dtype == x.dtype
    assert not torch.equal(*velocity)
    velocity.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.bfloat16, name
        assert parameter.grad.isfinite().all(), name


def test_wrong_shapes_are_refused_with_the_numbers_and_the_fix():
    model = small_model()
    x, t, context = draw_batch(model.config)
    with pytest.raises(ValueError, match=r"x is \[2, 4, 3, 4, 5\].*\[B, 4, 3, 4, 6\].*replace"):
        model(x[..., :5], t, context)
    with pytest.raises(ValueError, match=r"x is \[4, 3, 4, 6\]"):
        model(x[0], t, context)
    with pytest.raises(ValueError, match=r"t is \[1\]; give one time per video: \[2\]"):
        model(x, t[:1], context)
    with pytest.raises(ValueError, match=r"context is \[2, 5, 3\].*\[2, N, 8\]"):
        model(x, t, context[..., :3])
