"""The FLOPs that a run logs are those that it computes, as torch counts them on real tensors."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.flop_counter import FlopCounterMode
from trainer_runs import SPARSE, tiny

from models.attention import VSA, Dense
from train.configs import wan
from train.demo.model import PixelDiTConfig
from train.demo.settings import CPU
from train.flow import flow_loss
from train.losses import VelocityDistillation, dense
from train.plan.cost import attention_cost, other_cost
from train.plan.trace import ON_CPU
from train.records.metrics import Metrics
from train.sparsity.attention_stats import slots
from train.weights.lora import LoRAConfig, add_lora


def on_pixels():
    config = tiny("unused")
    return replace(config, model=PixelDiTConfig(replace(config.model, layers=3)))


def adapted():
    return replace(wan.debug_vsa_adapt(), lora=LoRAConfig(rank=2))


def with_attention(config, slot):
    model = config.model
    if hasattr(model, "dit"):
        return replace(config, model=replace(model, dit=replace(model.dit, attention=slot)))
    return replace(config, model=replace(model, attention=slot))


def computed(config):
    """FLOPs of a clip's loss and gradients, dense attention by torch's own kernel."""
    model = config.model.build()
    add_lora(model, config.lora)
    for slot in slots(model):
        slot.forward = lambda x, q, k, v, tiling: F.scaled_dot_product_attention(q, k, v)
    loader, size = config.dataloader, getattr(config.model, "dit", config.model)
    words = getattr(loader, "text_tokens", 0) or loader.context_tokens
    channels = getattr(size, "in_channels", 0) or size.channels
    x0, noise = torch.randn(2, 1, channels, *size.video)
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        context, t = torch.randn(1, words, size.context_dim), torch.rand(1)
        flow_loss(model, x0, context, noise, t).sum().backward()
    return counter.get_total_flops(), attention_cost(model, None)["attention__flops_per_clip"]


@pytest.mark.parametrize("kind", [lambda: tiny("unused"), on_pixels, adapted])
def test_it_is_what_torch_counts(kind):
    config = with_attention(kind(), Dense())
    every, attention = computed(config)
    assert other_cost(config) + attention == every
    gates = with_attention(config, VSA(tile=(1, 2, 2), top_k=1))
    assert other_cost(gates) > other_cost(config)


@pytest.mark.parametrize("kind", [lambda: tiny("unused"), adapted])
def test_a_teacher_adds_a_dense_forward_pass_attention_included_without_gates(kind):
    alone = kind()
    distilled = replace(alone, loss=VelocityDistillation())
    model = alone.model.build()
    add_lora(model, alone.lora)
    size, loader = alone.model, alone.dataloader
    words = getattr(loader, "text_tokens", 0) or loader.context_tokens
    x = torch.randn(1, getattr(size, "in_channels", 0) or size.channels, *size.video)
    counter = FlopCounterMode(display=False, custom_mapping=ON_CPU)
    with torch.no_grad(), dense(model), counter:
        model(x, torch.rand(1), torch.randn(1, words, size.context_dim))
    assert other_cost(distilled) - other_cost(alone) == counter.get_total_flops()


def test_a_run_logs_it_whatever_its_batch_and_checkpointing(tmp_path):
    log = Metrics.Config(log_freq=1, enable_tensorboard=True)
    config = tiny(tmp_path, steps=1, metrics=log, activation_checkpoint="full")
    trainer = config.build()
    trainer.train()
    trainer.close()
    (events,) = tmp_path.glob("tb/*")
    (logged,) = EventAccumulator(str(events)).Reload().Scalars("train/flops_per_clip")
    one = with_attention(tiny("unused", local_batch_size=1), SPARSE)
    attention = attention_cost(trainer.model, 3)["attention__flops_per_clip"]
    assert logged.value == pytest.approx(other_cost(one) + attention, rel=1e-7)


def test_it_is_the_evidences_count():
    from benchmarks.evidence.flops import step_flops

    config, numbers = CPU.trainer("vsa", Path(), Path(), 1), torch.get_rng_state()
    assert other_cost(config) == step_flops(config).other
    assert torch.equal(torch.get_rng_state(), numbers), "the rank that counts stays like the others"


def test_of_an_unknown_model_there_is_none():
    assert other_cost(replace(tiny("unused"), model=object())) is None


def test_what_cannot_be_counted_is_a_curve_less_and_no_run_less(caplog):
    assert other_cost(replace(tiny("unused"), dataloader=object())) is None
    assert "no train/flops_per_clip: AttributeError: 'object' object has no" in caplog.text
