"""Training and validation of a model whose density follows the noise level."""

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from trainer_runs import tiny

from models.attention import VSA, ByNoise, Dense
from models.video_dit import VideoDiTConfig
from train.flow import draw
from train.plan.plan import plan
from train.records.run_dir import describe, rebuild
from train.sparsity.annealing import SparsityConfig
from train.sparsity.attention_stats import attention_stats
from train.sparsity.schedules import DenseWarmup
from train.validation import Validator
from train.weights.checkpoint import Checkpointer

TILE = (1, 2, 2)
SLOT = ByNoise({0.7: Dense(), 0.4: VSA(top_k=4, tile=TILE), 0: VSA(top_k=2, tile=TILE)}, [1])
QUIET = Checkpointer.Config(enable=False)
VALIDATED: Any = dict(
    steps=3, checkpoint=QUIET, validation=Validator.Config(interval=3, clips=8, sample_steps=2)
)


def bands(t):
    return {SLOT.band(x[None]) for x in t}


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_step_has_times_of_one_band_and_all_steps_those_of_single_times(shift):
    clips = torch.zeros(3, 1, 1, 1, 1)
    options = dict(seed=0, positions=range(3), shift=shift, least=0.1)
    times, free = [], []
    for step in range(2000):
        _, t = draw(clips, step=step, levels=SLOT.levels, **options)
        assert len(bands(t)) == 1
        times.append(t)
        free.append(draw(clips, step=step, **options)[1])
    found, due = torch.cat(times), torch.cat(free)
    # Kolmogorov-Smirnov at 0.1 %, of as many independent draws as there are steps
    every = torch.linspace(0.1, 1, 50)
    apart = [((found <= x).double().mean() - (due <= x).double().mean()).abs() for x in every]
    assert max(apart) < 1.95 * (2 / 2000) ** 0.5
    assert found.min() >= 0.1 and found.max() < 1


def test_times_at_the_very_edge_of_a_band_stay_in_it():
    """fp32 rounds what is just below 0.7 to just above it."""
    for level in (0.1, 0.3, 0.7, 0.9):
        slot = ByNoise({level: Dense(), 0: VSA()})
        for place, of_step, band in ((1 - 2.0**-24, 0.0, "1"), (0.0, 1 - 2.0**-24, "0")):
            drawn = map(torch.tensor, (place, place, of_step))
            with mock.patch("torch.rand", lambda *_, drawn=drawn, **__: next(drawn)):
                clips = torch.zeros(2, 1, 1, 1, 1)
                _, t = draw(clips, seed=0, step=0, positions=[0, 1], levels=[level])
            assert slot.band(t) == band


def test_a_run_trains_validates_and_tells_of_each_layer(tmp_path):
    trainer = tiny(tmp_path, attention=SLOT, **VALIDATED).build()
    history = trainer.train()
    trainer.close()
    assert len(history.steps) == 3 and len(history.validation) == 2
    slots = [block.self_attention.slot for block in trainer.model.layers.values()]
    assert [slot.kv_rules["2"] for slot in slots] == [2, None, *[2] * (len(slots) - 2)]
    n = trainer.model.tiling.num_tiles
    x, _, context = trainer.validator.noisy()
    for time, admitted in ((0.9, None), (0.5, 4), (0.1, 2)):
        stats = attention_stats(trainer.model, x, torch.tensor([time]), context)
        assert [layer.mean_admitted for layer in stats][:2] == [admitted, None]
    mean = 0.3 * n + 0.3 * 4 + 0.4 * 2
    assert trainer.model.top_k == pytest.approx(mean + (n - mean) / len(slots))
    with pytest.raises(ValueError, match="different"):
        trainer.model(x.repeat(2, 1, 1, 1, 1), torch.tensor([0.9, 0.1]), context.repeat(2, 1, 1))


def test_validation_has_the_loss_of_each_clip_at_the_density_of_its_time(tmp_path):
    trainer = tiny(tmp_path, attention=SLOT, **VALIDATED).build()
    trainer.close()
    torch.manual_seed(0)
    for p in trainer.model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    met = []

    def told(module, args):
        met.append(args[1].tolist())

    trainer.model.register_forward_pre_hook(told)
    trainer.validator.loss(trainer.model)
    assert all(len(t) == 1 for t in met) and len(met) == trainer.validator.clips
    assert bands(torch.tensor(met).flatten()) == {"0", "1", "2"}


def test_compiled_blocks_have_a_program_for_each_band():
    torch._dynamo.reset()
    config = VideoDiTConfig(
        channels=3, video=(2, 32, 32), patch=(1, 8, 8), dim=32, heads=2, layers=2, ffn=64
    )
    config = replace(config, attention=ByNoise(SLOT.methods))
    model, eager = config.build(), config.build()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    eager.load_state_dict(model.state_dict())
    programs = CompileCounterWithBackend("eager")
    for block in model.layers.values():
        block.compile(backend=programs, fullgraph=True)
    x, context = torch.randn(1, 3, 2, 32, 32), torch.randn(1, 4, 64)
    counts = []
    for time in (0.9, 0.8, 0.5, 0.1, 0.9, 0.6, 0.2):
        t = torch.tensor([time])
        assert torch.equal(model(x, t, context), eager(x, t, context))
        counts.append(programs.frame_count)
    assert counts == [1, 1, 2, 3, 3, 3, 3]


def test_a_config_is_written_read_and_planned(tmp_path):
    config = tiny(tmp_path, attention=SLOT)
    classes = {c.__name__: c for c in (ByNoise, VSA, Dense, type(config.model))}
    assert rebuild(describe(config)["model"], classes) == config.model
    n = 8
    mean = 0.3 * n + 0.3 * 4 + 0.4 * 2
    alone, found = (
        plan(replace(config, model=replace(config.model, attention=slot)), 1, "cpu").attention[0]
        for slot in (VSA(top_k=2, tile=TILE), SLOT)
    )
    tiling = SLOT.tiling(config.model.grid)
    of_a_tile = 2 * 4 * tiling.padded_tokens * tiling.rows * config.model.dim
    assert found - alone == pytest.approx(((mean + n) / 2 - 2) * of_a_tile, rel=1e-4)


def test_what_cannot_be_trained_so_is_named(tmp_path):
    with pytest.raises(ValueError, match="give each one method"):
        ByNoise([(0.5, Dense()), (0.5, VSA()), (0, VSA())])
    sparsity = SparsityConfig(schedule=DenseWarmup(steps=2))
    with pytest.raises(ValueError, match="follows the noise level"):
        tiny(tmp_path, attention=SLOT, sparsity=sparsity, checkpoint=QUIET).build()
    far = ByNoise({0.5: Dense(), 0: VSA(tile=TILE)}, dense_layers=[40])
    with pytest.raises(ValueError, match=r"layers 0 to \d"):
        tiny(tmp_path / "far", attention=far).build()
