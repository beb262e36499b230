from dataclasses import replace
from pathlib import Path

import torch

from flexsparse import Threshold
from models.attention import BSA, VSA
from models.video_dit import VideoDiTConfig
from train.demo.model import LEAST_TIME, PixelDiTConfig
from train.demo.settings import CPU, GPU, RUNS, turn
from train.flow import flow_loss, shifted

SIZE = VideoDiTConfig(
    channels=3, video=(4, 16, 24), patch=(1, 4, 4), dim=32, heads=2, layers=2, ffn=32
)


def test_a_network_that_knows_the_clip_has_no_loss_at_any_time():
    model = PixelDiTConfig(SIZE).build()
    x0, noise = torch.randn(2, 4, 3, *SIZE.video)
    t = torch.tensor([LEAST_TIME, 0.3, 0.9, 1.0])
    knowing = torch.nn.Module()
    knowing.forward = lambda *_: x0
    model.dit = knowing
    loss = flow_loss(model, x0, torch.zeros(4, 5, SIZE.context_dim), noise, t)
    assert (loss <= (torch.finfo(torch.float32).eps * noise.abs().max() / t).square()).all(), loss


def test_no_time_below_the_least_is_trained_or_sampled():
    settings = CPU.trainer("vsa", Path(), Path(), 1).flow
    assert settings.least == LEAST_TIME
    visited = shifted(torch.linspace(1, 0, CPU.sample_steps + 1), CPU.shift)[:-1]
    assert visited.min() >= LEAST_TIME


def test_a_place_is_seen():
    """A constant clip is not mapped to a constant one, once the head is not zero."""
    torch.manual_seed(0)
    model = PixelDiTConfig(SIZE).build()
    torch.nn.init.normal_(model.dit.head.out.weight, std=0.1)
    velocity = model(torch.zeros(1, 3, *SIZE.video), torch.ones(1), torch.zeros(1, 5, 64))
    per_token = velocity[0, 0, :, ::4, ::4]
    assert len(per_token.unique()) == per_token.numel()


def test_all_runs_begin_with_the_same_weights():
    weights = []
    for slot in RUNS.values():
        torch.manual_seed(5)
        weights.append(PixelDiTConfig(replace(SIZE, attention=slot)).build().state_dict())
    dense, vsa, bsa = weights
    for sparse in (vsa, bsa):
        assert all(torch.equal(dense[name], sparse[name]) for name in dense)
    assert set(bsa) == set(dense), "BSA has no weights of its own"
    assert set(vsa) - set(dense) == {name for name in vsa if "slot" in name} != set()


def test_the_demo_is_as_large_as_promised():
    """At least 4,096 tokens, no ragged tile, and exactly 87.5 % sparse, on either device."""
    for settings in (CPU, GPU):
        config = settings.trainer("vsa", Path(), Path(), 1).model.dit
        slot = RUNS["vsa"]
        assert isinstance(slot, VSA)
        tiling = slot.tiling(config.grid)
        assert tiling.tokens >= 4096 and tiling.tokens == tiling.padded_tokens
        assert slot.top_k_for(tiling) * 8 == tiling.num_tiles
        bsa = RUNS["bsa"]
        assert isinstance(bsa, BSA) and bsa.tiling(config.grid) == tiling
        assert bsa.rule_for(tiling) == Threshold(slot.top_k_for(tiling))
        assert bsa.q_rows_for(tiling) * 2 == tiling.rows
        assert settings.video[1] % 8 == settings.video[2] % 8 == 0


def test_turns_make_up_the_validations():
    assert turn(160, 8) == 20 and turn(3, 8) == 1
