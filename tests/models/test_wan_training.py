"""Wan from scratch and under the trainer's wrappers: how it starts, that no gradient changes."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from small_wan import draw_batch, gradients, small_wan

from models.attention import BSA, VSA, Dense
from train.distributed.activation_checkpoint import apply_activation_checkpointing
from train.distributed.parallelize import (
    ParallelConfig,
    init_process_group,
    parallel_dims,
    parallelize,
)
from train.flow import flow_loss
from train.titan import canonical_fqn

SLOTS = [
    Dense(),
    VSA(sparsity=0.5, tile=(2, 2, 2)),
    VSA(sparsity=0.5, tile=(2, 2, 2), adapt=True),
    BSA(sparsity=0.5, tile=(2, 2, 2), window=(1, 2, 2)),
]
slots = pytest.mark.parametrize("attention", SLOTS, ids=["dense", "vsa", "vsa-adapt", "bsa"])
IMAGE = dict(image_dim=24, pos_embed_seq_len=6)


@slots
def test_a_fresh_model_says_zero_and_opens_from_the_head(attention):
    torch.manual_seed(0)
    model = small_wan(attention=attention, **IMAGE).config.build()
    batch = draw_batch(model.config)
    rows = []
    model.layers["0"].register_forward_pre_hook(lambda module, args: rows.append(args[0]))
    model.head.register_forward_pre_hook(lambda module, args: rows.append(args[0]))
    assert not model(*batch).any()
    assert torch.equal(*rows)

    awake = []
    for _ in range(3):
        model.zero_grad()
        (model(*batch) - batch[0]).square().mean().backward()
        awake.append({name for name, p in model.named_parameters() if p.grad.any()})
        with torch.no_grad():
            for p in model.parameters():
                p -= p.grad
    assert awake[0] == {"head.head.weight", "head.head.bias"}
    opened = {"time_projection.1.weight", "layers.0.modulation", "layers.1.cross_attn.o.bias"}
    assert awake[1] >= opened
    assert awake[2] == {name for name, _ in model.named_parameters()}


@slots
def test_from_meta_to_the_same_weights(attention):
    config = small_wan(attention=attention, **IMAGE).config
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
    config = small_wan(**IMAGE).config
    models = []
    for attention in SLOTS:
        torch.manual_seed(7)
        models.append(replace(config, attention=attention).build().state_dict())
    for name, weight in models[0].items():
        assert all(torch.equal(weight, other[name]) for other in models[1:]), name


@slots
def test_every_video_has_its_own_output(attention):
    model = small_wan(attention=attention, **IMAGE)
    batch = [y.requires_grad_() for y in draw_batch(model.config, batch=3)]
    model(*batch)[1].square().sum().backward()
    for y in batch:
        assert y.grad[1].any()
        assert not y.grad[[0, 2]].any()


modes = pytest.mark.parametrize("mode", ["none", "selective", "full"])


@slots
@modes
def test_activation_checkpointing_changes_no_gradient(attention, mode):
    model = small_wan(attention=attention, **IMAGE)
    recomputed = deepcopy(model)
    apply_activation_checkpointing(recomputed, mode)
    batch = draw_batch(model.config)
    wanted = gradients(model, model(*batch))
    found = gradients(recomputed, recomputed(*batch))
    assert {canonical_fqn(name) for name in found} == wanted.keys()
    for (name, gradient), same in zip(wanted.items(), found.values()):
        assert torch.equal(gradient, same), name


@slots
@modes
def test_fsdp_and_the_loss_of_the_trainer_change_no_gradient(attention, mode):
    """One layer: FSDP adds up what several layers say of the text in an order of its own."""
    init_process_group(60)
    model = small_wan(attention=attention, layers=1)
    dims = parallel_dims(ParallelConfig())
    wrapped = parallelize(deepcopy(model), dims, activation_checkpoint=mode)
    x, t, context = draw_batch(model.config)
    noise = torch.randn_like(x)
    for of in (model, wrapped):
        flow_loss(of, x, context, noise, t).mean().backward()
    found = {canonical_fqn(n): p.grad.to_local() for n, p in wrapped.named_parameters()}
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(found[name], parameter.grad), name


def test_fsdp_computes_in_bf16_and_times_stay_apart():
    init_process_group(60)
    model = small_wan(attention=SLOTS[1])
    half = deepcopy(model).to(torch.bfloat16)
    dims = parallel_dims(ParallelConfig())
    wrapped = parallelize(model, dims, param_dtype=torch.bfloat16)
    x, _, context = draw_batch(half.config)
    x, context = x[:1].repeat(2, 1, 1, 1, 1), context[:1].repeat(2, 1, 1)
    t = torch.tensor([0.9985, 0.9995])
    velocity = wrapped(x, t, context)
    assert velocity.dtype == x.dtype
    assert torch.equal(velocity, half(x, t, context))
    assert not torch.equal(*velocity)
