"""What a plan says is what a run does: parameters, bytes and FLOPs, by the tensors themselves."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from bucket_runs import SIZES, bucketed
from trainer_runs import tiny

from benchmarks.wan.models import forward_flops
from models.attention import BSA, VSA, Dense
from models.video_dit.model import TIME_CHANNELS
from train.__main__ import main
from train.configs import video_dit, wan
from train.data import VideoDataLoader
from train.distributed.parallelize import ParallelConfig
from train.flow import flow_loss
from train.plan import plan
from train.plan.layout import Layout
from train.plan.live import Live
from train.plan.memory import states
from train.plan.plan import parameters_of
from train.plan.text import lines, size
from train.plan.trace import trace
from train.plan.traffic import traffic, ulysses_bytes
from train.records.metrics import peak_memory, reset_peak_memory
from train.weights.initial import InitialConfig, first_model
from train.weights.lora import LoRAConfig, add_lora

CONFIGS = [video_dit.dit_60m_vsa, wan.debug_vsa_adapt, wan.wan_14b_bsa_adapt]


def local_bytes(tensors) -> int:
    return sum(t.to_local().nbytes for t in tensors)


def state_bytes(trainer) -> dict[str, int]:
    """Of a trainer after a step, by what its tensors take on this rank."""
    parameters = list(trainer.model.parameters())
    moments = [
        tensor
        for optimizer in trainer.optimizers
        for state in optimizer.state.values()
        for name, tensor in state.items()
        if name.startswith("exp_avg")
    ]
    return {
        "weights": local_bytes(parameters),
        "gradients": local_bytes(p.grad for p in parameters if p.grad is not None),
        "moments": local_bytes(moments),
        "average": local_bytes(trainer.ema.average.values()),
    }


@pytest.mark.parametrize("run", CONFIGS)
def test_parameters_are_those_of_the_model(run):
    with torch.device("meta"):
        model = run().model.build()
    found = parameters_of(model)
    assert sum(found.values()) == sum(p.numel() for p in model.parameters())
    assert min(found.values()) > 0
    gates = sum(p.numel() for name, p in model.named_parameters() if ".slot." in name)
    assert found.get("gates", 0) == gates


@pytest.mark.parametrize("slot", [Dense(), VSA(tile=(1, 2, 2), top_k=3)])
def test_states_are_the_bytes_of_the_tensors(tmp_path, slot):
    config = tiny(tmp_path, attention=slot, steps=1)
    trainer = config.build()
    trainer.train()
    trainer.close()
    planned = states(config.model.build(), config, 1)
    assert {name: getattr(planned, name) for name in state_bytes(trainer)} == state_bytes(trainer)


def test_with_lora_only_adapters_have_gradients():
    config, model = wan.debug_vsa_adapt(), wan.debug_vsa_adapt().model.build()
    whole = states(model, config, 1)
    add_lora(model, LoRAConfig(rank=4))
    found = states(model, config, 1)
    assert found.weights > whole.weights
    assert found.gradients < whole.gradients and found.moments == 2 * found.gradients


def test_at_the_start_the_first_host_has_the_whole_model():
    config = wan.debug_vsa_adapt()
    config = replace(config, lora=LoRAConfig(rank=4), initial=InitialConfig())
    found = plan(config, 12)
    assert found.host == sum(p.nbytes for p in first_model(config).parameters())
    (said,) = [line for line in lines(found) if "at the start" in line]
    assert size(found.host) in said


def test_flops_of_wans_blocks_are_the_stated_formula():
    config = wan.wan_1_3b_vsa_adapt()
    found = plan(config, 8)
    slot = config.model.attention
    blocks, attention = forward_flops(config.model, config.model.grid, slot)
    parts = dict(found.traces["none"].forward)
    outside = parts.pop("outside the blocks")
    assert found.attention[0] == attention
    assert sum(parts.values()) + attention == blocks
    assert 0 < outside < 0.02 * blocks


def test_a_steps_flops_are_thrice_the_forwards_and_once_more_for_what_is_made_again():
    slot = BSA(tile=(1, 2, 2), window=None)
    config = tiny("unused", attention=slot, global_batch_size=8)
    found = plan(config, 1, "cpu")
    forward = sum(found.traces["none"].forward.values())
    blocks = forward - found.traces["none"].forward["outside the blocks"]
    none, full = (found.traces[mode].total for mode in ("none", "full"))
    assert full - none == blocks
    # twice a product's FLOPs, and 5/2 of attention's; to what is given there is no way back
    c, clips, words = (
        config.model,
        config.training.local_batch_size,
        config.dataloader.context_tokens,
    )
    cross = c.layers * 4 * clips * found.rows * words * c.dim
    given = 2 * clips * c.dim * (found.rows * c.patch_dim + words * c.context_dim + TIME_CHANNELS)
    assert none == 3 * forward + cross // 2 - given
    one = none / config.training.local_batch_size
    assert found.flops() == round(8 * (one + found.attention[1]))
    again = replace(found, config=replace(found.config, activation_checkpoint="full"))
    assert again.flops() == round(8 * (full / 4 + sum(found.attention)))


@pytest.mark.parametrize(
    "slot, most", [(Dense(), 1.0), (VSA(tile=(1, 2, 2), top_k=3), 1.3), (BSA(window=None), 1.3)]
)
def test_activations_are_what_a_step_holds(slot, most):
    """On the CPU, with its own kernels: exactly where they keep what all kernels keep."""
    config = tiny("unused", attention=slot)
    config.model = replace(config.model, video=(4, 64, 64), layers=3)
    model: Any = config.model.build()
    x0, noise = torch.randn(2, 4, 3, 4, 64, 64)
    context = torch.randn(4, config.dataloader.context_tokens, config.model.context_dim)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with Live([*model.parameters(), x0, noise, context]) as live:
        loss = flow_loss(model, x0, context, noise, torch.rand(4)).sum()
        kept = live.bytes
        loss.backward()
    found = trace(config, "none", torch.float32)
    for ours, held in ((found.kept, kept), (found.peak, live.peak)):
        assert 1 / most <= held / ours <= most


def test_checkpointing_keeps_less_and_less():
    config = video_dit.dit_120m_vsa()
    config.model = replace(config.model, layers=8)
    none, selective, full = (
        trace(config, mode, torch.bfloat16) for mode in ("none", "selective", "full")
    )
    assert full.kept < selective.kept < none.kept / 2
    assert full.peak < selective.peak < none.peak / 2


def test_traffic_of_a_ring():
    sizes = dict(in_blocks=10, outside=2, trained=12, itemsize=2, passes=3)
    assert traffic(**sizes, shards=1, replicas=1).total == 0
    ddp = traffic(**sizes, shards=1, replicas=4)
    assert ddp.total == ddp.all_reduce == 3 * 2 * 4 * 12 * 3 / 4
    fsdp = traffic(**sizes, shards=4, replicas=1)
    assert fsdp.all_gather == 3 * 2 * (2 * 10 + 2) * 3 / 4
    assert fsdp.reduce_scatter == 3 * 4 * 12 * 3 / 4 and fsdp.all_reduce == 0
    assert traffic(**sizes, shards=4, replicas=2).all_reduce == 3 * 2 * 4 * 3 * 1 / 2
    layer = dict(rows=64, dim=8, out=3, batch=2, itemsize=2, layers=3, gates=1)
    assert ulysses_bytes(**layer, degree=1, again=False) == 0
    there = (2 * 16 * 8 * 2) * 3 / 4  # of one tensor, one way
    last = 3 * (2 * 16 * 3 * 2)
    assert ulysses_bytes(**layer, degree=4, again=False) == 3 * 5 * 2 * there + last
    assert ulysses_bytes(**layer, degree=4, again=True) == 3 * 5 * 3 * there + last


def test_ranks_that_share_a_clip_own_weights_together():
    config = tiny("unused", parallel=ParallelConfig(replicas=2, context_parallel_degree=2))
    layout = Layout.of(config, 8)
    assert (layout.replicas, layout.shards, layout.degree, layout.owners) == (2, 2, 2, 4)
    training = config.training.resolved(4, torch.device("cpu"))
    assert training.global_batch_size == 16 and layout.passes(training) == 1
    with pytest.raises(ValueError, match="2 heads cannot be shared by 4 ranks"):
        Layout.of(tiny("unused", parallel=ParallelConfig(context_parallel_degree=4)), 8)


def test_of_several_sizes_the_largest_is_planned():
    config = bucketed("unused")
    found = plan(config, 1, "cpu")
    largest = max(SIZES, key=math.prod)
    assert config.model.video != largest
    data = VideoDataLoader.Config(source="digits", buckets=(largest,))
    of_largest = replace(config, model=replace(config.model, video=largest), dataloader=data)
    alone = plan(of_largest, 1, "cpu")
    assert alone.memory("none") == found.memory("none")
    assert f"steps on clips of {' x '.join(map(str, largest))}, the largest of 3" in "".join(
        lines(found)
    )
    assert "largest" not in "".join(lines(alone))


def test_a_plan_for_many_gpus_allocates_nothing(capsys):
    reset_peak_memory(torch.device("cpu"))
    before = peak_memory(torch.device("cpu"))
    options = ["--config", "wan_14b_vsa_adapt", "--model.layers", "8", "--plan-gpus", "64"]
    assert main(["--module", "models.wan", *options]) == 0
    assert peak_memory(torch.device("cpu")) - before < 1e9, "the weights alone are 13e9"
    said = capsys.readouterr().out
    assert "64 processes: 1 replicas x 64 shards" in said and "76,800 a clip" in said


@pytest.mark.parametrize(
    "options, told",
    [
        (["--plan-gpus", "0"], "--plan-gpus is 0: give at least 1"),
        (["--plan-gpus", "6", "--parallel.replicas", "4"], "do not make up 6 processes"),
        (["--plan-gpus", "6", "--training.global-batch-size", "8"], "not a multiple of"),
        (["--plan", "--model.video", "4", "64", "96"], "model.video is (4, 64, 96), but the dat"),
    ],
)
def test_what_can_not_be_planned_is_a_line(options, told, caplog):
    assert main(["--config", "debug_vsa", *options]) == 1
    (record,) = [record for record in caplog.records if record.name == "train"]
    assert told in record.getMessage() and "\n" not in record.getMessage()
