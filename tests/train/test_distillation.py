"""Sparse attention that learns from its own weights, dense."""

from dataclasses import replace

import pytest
import torch
from laws import assert_accurate
from torch._dynamo.testing import CompileCounterWithBackend
from trainer_runs import run, tiny
from wan_runs import equal, inputs, lora

from models.attention import BSA, VSA, ByNoise, Dense
from models.video_dit import VideoDiTConfig
from models.wan import debug as wan_debug
from train.flow import flow_loss
from train.losses import FlowLoss, VelocityDistillation, dense
from train.records.run_dir import describe
from train.weights.lora import LoRAConfig, add_lora

VIDEO = VideoDiTConfig(
    channels=3, video=(2, 32, 32), patch=(1, 8, 8), dim=32, heads=2, layers=2, ffn=64
)
SLOTS = {
    "vsa": VSA(tile=(1, 2, 2), top_k=2, adapt=True),
    "bsa": BSA(tile=(1, 2, 2), kv=2, window=None),
    "by noise": ByNoise({0.9: Dense(), 0: VSA(tile=(1, 2, 2), top_k=2, adapt=True)}),
}
MODELS = {
    "dit": (VIDEO, (2, 3, 2, 32, 32), 64),
    "wan": (wan_debug(video=(2, 8, 8)), (2, 16, 2, 8, 8), 32),
}

LORA = {"dit": ("out", "up"), "wan": ("o", "ffn.0")}


def awake(config, seed=0):
    torch.manual_seed(seed)
    model = config.build()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=p[0].numel() ** -0.5 if p.ndim > 1 else 0.3)
    return model


def batch(shape, width):
    g = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, *shape, generator=g)
    return x0, torch.randn(2, 5, width, generator=g), noise, torch.tensor([0.3, 0.6])


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("name", MODELS)
def test_the_teacher_is_the_dense_model_of_the_same_weights(name, slot):
    config, shape, width = MODELS[name]
    model = awake(replace(config, attention=SLOTS[slot]))
    teacher = replace(config, attention=Dense()).build()
    own = {k: x for k, x in model.state_dict().items() if ".slot." not in k}
    teacher.load_state_dict(own)
    x0, context, noise, t = batch(shape, width)

    def due(kind):
        given = [x.to(kind) for x in (x0, context, noise)]
        teacher.to(kind), model.to(kind)
        s = t.to(kind).view(-1, 1, 1, 1, 1)
        x = (1 - s) * given[0] + s * given[2]
        with torch.no_grad():
            taught = teacher(x, t, given[1])
        apart = (model(x, t, given[1]) - taught).square().mean((1, 2, 3, 4))
        return 0.7 * apart + 0.3 * flow_loss(model, *given, t)

    def found(kind, loss):
        model.zero_grad()
        losses = loss(kind)
        losses.sum().backward()
        return [losses.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    exact, plain = (found(kind, due) for kind in (torch.float64, torch.float32))
    loss = VelocityDistillation(weight=0.7)
    ours = found(torch.float32, lambda _: loss(model, x0, context, noise, t))
    assert len(ours) == len(exact) and ours[0].min() > 0.01
    assert_accurate(ours, [plain], exact)


@pytest.mark.parametrize("name", MODELS)
def test_with_lora_the_teacher_is_the_model_before_it(name):
    config, shape, width = MODELS[name]
    model = awake(replace(config, attention=SLOTS["vsa"]))
    x0, context, noise, t = batch(shape, width)
    with torch.no_grad(), dense(model):
        before = model(x0, t, context)
    add_lora(model, LoRAConfig(rank=2, targets=LORA[name]))
    for name, p in model.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(p)
    with torch.no_grad(), dense(model):
        assert torch.equal(model(x0, t, context), before)
    assert not torch.allclose(model(x0, t, context), before, atol=0.1)
    VelocityDistillation()(model, x0, context, noise, t).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_compiled_it_takes_two_programs(name):
    torch._dynamo.reset()
    config, shape, width = MODELS[name]
    model = awake(replace(config, attention=SLOTS["vsa"]))
    given = batch(shape, width)
    due = VelocityDistillation()(model, *given)
    programs = CompileCounterWithBackend("eager")
    for block in model.layers.values():
        block.compile(backend=programs, fullgraph=True)
    for _ in range(3):
        assert torch.equal(VelocityDistillation()(model, *given), due)
    assert programs.frame_count == 2


@pytest.mark.parametrize("name", MODELS)
def test_a_run_goes_on_exactly_and_another_loss_is_another_run(tmp_path, name):
    """A fresh model, and a trained Wan that becomes sparse by a schedule, with LoRA."""
    given = inputs(tmp_path) if name == "wan" else None

    def config(folder, loss):
        options = dict(loss=loss, activation_checkpoint="full")
        if given:
            return lora("debug_vsa_adapt", tmp_path / folder, given, **options)
        return tiny(tmp_path / folder, attention=SLOTS["vsa"], **options)

    loss = VelocityDistillation(weight=0.5)
    numbers, straight = run(config("straight", loss))
    first, _ = run(config("resumed", loss), until=4)
    second, resumed = run(config("resumed", loss))
    assert first == numbers[:4] and second == numbers[3:]
    assert equal(resumed, straight)
    assert any(key.startswith("ema.") for key in straight)
    plain, _ = run(config("plain", FlowLoss()), until=1)
    assert plain != numbers[:1]
    other = config("resumed", VelocityDistillation(weight=0.6))
    with pytest.raises(ValueError, match=r"loss.weight \(0.5 there, 0.6 here\)"):
        other.build()
    assert describe(other)["loss"] == {"class": "VelocityDistillation", "weight": 0.6}


def test_what_cannot_learn_from_itself_is_named(tmp_path):
    with pytest.raises(ValueError, match="DenseAttention"):
        tiny(tmp_path / "dense", attention=Dense(), loss=VelocityDistillation()).build()
    assert not (tmp_path / "dense").exists()
    for weight in (0.0, 1.5):
        with pytest.raises(ValueError, match="above 0, at most 1"):
            VelocityDistillation(weight=weight)
