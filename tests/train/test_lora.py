"""Adapters: they start as nothing, merge into what they do, and train alone, under any wrapper."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from laws import assert_accurate, seeds
from torch import nn
from wan_runs import awake_wan, batch_for

from models.attention import BSA, VSA, Dense
from train.distributed.parallelize import (
    ParallelConfig,
    init_process_group,
    parallel_dims,
    parallelize,
)
from train.flow import flow_loss
from train.titan import canonical_fqn
from train.weights.lora import LoRAConfig, LoRALinear, add_lora, merge_lora

SLOTS = [
    Dense(),
    VSA(sparsity=0.5, tile=(2, 2, 2)),
    VSA(sparsity=0.5, tile=(2, 2, 2), adapt=True),
    BSA(sparsity=0.5, tile=(2, 2, 2), window=(1, 2, 2)),
]
slots = pytest.mark.parametrize("attention", SLOTS, ids=["dense", "vsa", "vsa-adapt", "bsa"])
LORA = LoRAConfig(rank=3, alpha=5.0)


def adapted(attention, awake=True, config=LORA, **changes):
    """A model with adapters; `awake`: B is not zero."""
    model = awake_wan(attention=attention, **changes)
    add_lora(model, config)
    for name, parameter in model.named_parameters():
        if awake and name.endswith("lora_b"):
            nn.init.normal_(parameter, std=0.3)
    return model


@st.composite
def layers(draw):
    linear = nn.Linear(draw(st.integers(1, 70)), draw(st.integers(1, 70)), draw(st.booleans()))
    torch.manual_seed(draw(seeds))
    layer = LoRALinear(linear, draw(st.integers(1, 9)), draw(st.sampled_from([1.0, 16.0, 37.5])))
    nn.init.normal_(layer.lora_b)
    return layer, torch.randn(draw(st.integers(1, 30)), linear.in_features)


def with_gradients(layer, x, function, dtype=torch.float32):
    """function(x, A, B), and gradients of these three for a loss that weighs all differently."""
    inputs = [y.detach().to(dtype).requires_grad_() for y in (x, layer.lora_a, layer.lora_b)]
    out = function(*inputs)
    weight = torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), inputs)]


@given(layers())
def test_applied_and_merged_are_as_exact_as_plain_pytorch(problem):
    layer, x = problem
    wide, scale = deepcopy(layer).double(), layer.scale

    def applied(x, a, b):
        return torch.func.functional_call(layer, {"lora_a": a, "lora_b": b}, (x,))

    def apart(x, a, b):
        return F.linear(x, layer.weight, layer.bias) + scale * F.linear(F.linear(x, a), b)

    def product(x, a, b, of=layer):
        return F.linear(x, of.weight + scale * b @ a, of.bias)

    exact = with_gradients(layer, x, lambda *inputs: product(*inputs, wide), torch.double)
    plain = [with_gradients(layer, x, way) for way in (apart, product)]
    assert_accurate(with_gradients(layer, x, applied), plain, exact, [x])
    merged = layer.merged()
    assert type(merged) is nn.Linear and merged.weight.dtype == layer.weight.dtype
    assert_accurate([merged(x).detach()], [way[:1] for way in plain], exact[:1], [x])


@slots
def test_new_adapters_change_nothing_and_merge_to_the_same_weights(attention):
    model = awake_wan(attention=attention)
    batch = batch_for(model)
    fresh = adapted(attention, awake=False)
    assert torch.equal(fresh(*batch), model(*batch))
    merge_lora(fresh)
    assert fresh.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(x, fresh.state_dict()[k]) for k, x in model.state_dict().items())


@slots
def test_adapters_and_gates_train_and_nothing_else(attention):
    model = adapted(attention)
    train = {name for name, p in model.named_parameters() if p.requires_grad}
    places = [f"layers.{i}.self_attn.{x}" for i in range(2) for x in "qkvo"]
    adapters = {f"{place}.lora_{x}" for place in places for x in "ab"}
    gates = {name for name, _ in model.named_parameters() if ".slot." in name}
    assert train == adapters | gates
    model(*batch_for(model)).square().sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == train
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)


def test_adapters_are_drawn_in_the_order_of_the_layers():
    """Every rank builds them for itself, and has to draw the same."""
    model, found = awake_wan(layers=5), []
    torch.manual_seed(7)
    add_lora(model, LORA)
    torch.manual_seed(7)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            due = nn.init.normal_(torch.empty(3, 64), std=64**-0.5)
            found.append(torch.equal(module.lora_a, due))
    assert found == [True] * 20


def test_targets_are_the_last_parts_of_names_and_unknown_ones_get_the_known():
    model = awake_wan()
    add_lora(model, LoRAConfig(rank=2, targets=("ffn.0", "o", "layers.1.self_attn.q")))
    places = {name for name, m in model.named_modules() if isinstance(m, LoRALinear)}
    kinds = ("ffn.0", "self_attn.o", "cross_attn.o")
    due = {f"layers.{i}.{kind}" for i in range(2) for kind in kinds} | {"layers.1.self_attn.q"}
    assert places == due
    with pytest.raises(ValueError) as error:
        add_lora(awake_wan(), LoRAConfig(rank=2, targets=("attn.q", "self_attn.k")))
    line = str(error.value)
    assert "called attn.q; the model has " in line and "layers.*.self_attn.q" in line
    assert "\n" not in line


@pytest.mark.parametrize("wrong", [dict(rank=-1), dict(alpha=0.0), dict(rank=1, targets=())])
def test_numbers_that_make_no_adapter(wrong):
    with pytest.raises(ValueError, match="give a rank of at least 0, an alpha above 0"):
        LoRAConfig(**wrong)


def trained(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


@slots
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_wrappers_change_no_gradient(attention, mode):
    """Of the trainer's loss, under activation checkpointing and FSDP, with one layer."""
    init_process_group(60)
    model = adapted(attention, layers=1)
    dims = parallel_dims(ParallelConfig())
    wrapped = parallelize(deepcopy(model), dims, activation_checkpoint=mode)
    x, t, context = batch_for(model)
    noise = torch.randn_like(x)
    for of in (model, wrapped):
        flow_loss(of, x, context, noise, t).mean().backward()
    found = {canonical_fqn(n): p.grad.to_local() for n, p in trained(wrapped).items()}
    assert found.keys() == trained(model).keys()
    for name, parameter in trained(model).items():
        assert torch.equal(found[name], parameter.grad), name
    frozen = [p for p in wrapped.parameters() if not p.requires_grad]
    assert frozen and all(p.grad is None for p in frozen)


def test_adapters_compile_whole():
    model = adapted(Dense(), layers=1)
    batch = batch_for(model)
    compiled = deepcopy(model)
    for block in compiled.layers.values():
        block.compile(fullgraph=True, backend="aot_eager")
    out, due = compiled(*batch), model(*batch)
    assert torch.equal(out, due)
    out.square().sum().backward()
    due.square().sum().backward()
    for (name, parameter), same in zip(trained(model).items(), trained(compiled).values()):
        assert torch.equal(parameter.grad, same.grad), name
