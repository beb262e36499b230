"""A dense Wan becomes sparse in training: from which weights, on which schedule, and resumed."""

import shutil
from dataclasses import replace

import pytest
import torch
from laws import assert_accurate
from trainer_runs import run, tiny, weights
from wan_runs import QUIET, adapting, awake_wan, equal, inputs

from models.wan import WanModel
from models.wan.checkpoint import save
from train.flow import FlowConfig, draw, keyed_generator, shifted
from train.registry import find_runs, load_config
from train.sparsity.annealing import Annealing, SparsityConfig
from train.sparsity.schedules import DenseWarmup
from train.weights.checkpoint import Checkpointer
from train.weights.initial import InitialConfig
from train.weights.lora import LoRAConfig

RUNS = find_runs("models.wan")
both = pytest.mark.parametrize("name", ["debug_vsa_adapt", "debug_bsa_adapt"])


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return inputs(tmp_path_factory.mktemp("given"))


@pytest.mark.parametrize("name", RUNS)
def test_every_run_fits_its_data_and_ends_at_its_target(name):
    config = RUNS[name]()
    data, model = config.dataloader, config.model
    size = (data.channels, data.num_frames, data.height, data.width)
    assert size == (model.in_channels, *model.video)
    assert data.text_dim == model.text_dim
    assert config.dump_folder == f"out/{name}"
    assert config.initial.required != name.startswith("debug")
    with torch.device("meta"):
        built = WanModel(model)
    plan = Annealing(built, config.sparsity.schedule, config.training.steps)
    assert plan.tiles_at(1) is None
    assert plan.tiles_at(config.training.steps) == plan.target == built.top_k
    assert len({plan.tiles_at(step) for step in range(1, config.training.steps)}) > 3
    size = name.removesuffix("_vsa_adapt").removesuffix("_bsa_adapt")
    assert built.tokens == {"debug": 180, "wan_1_3b": 23_296, "wan_14b": 76_800}[size]


def test_weights_and_adapters_are_options():
    argv = ["--module", "models.wan", "--config", "wan_1_3b_vsa_adapt", "--initial.weights", "DIR"]
    argv += ["--lora.rank", "8", "--lora.targets", "ffn.0", "ffn.2"]
    config = load_config(argv)
    assert config.initial == InitialConfig(weights="DIR", required=True)
    assert config.lora == LoRAConfig(rank=8, targets=("ffn.0", "ffn.2"))


def loss_of_dense(dtype, video, context, noise, t):
    """By the dense model, in plain PyTorch."""
    x0, context, noise, s = (x.to(dtype) for x in (video, context, noise, t.view(-1, 1, 1, 1, 1)))
    with torch.no_grad():
        velocity = awake_wan().to(dtype)((1 - s) * x0 + s * noise, s.flatten(), context)
    return (velocity - (noise - x0)).square().mean()


def first_losses(config, dtype):
    """Of validation before the first step, on one batch of two clips, and of that step."""
    build, shift = config.dataloader.build, config.flow.shift
    loader = build(local_batch_size=2, split="validation")
    loader.keep(2)
    held = next(iter(loader))
    rng = [keyed_generator(torch.device("cpu"), "validation", 0, i) for i in range(2)]
    noise = torch.stack([torch.randn(x.shape, generator=g) for x, g in zip(held["video"], rng)])
    even = shifted(torch.tensor([0.25, 0.75]), shift)
    batch = next(iter(build(local_batch_size=2)))
    drawn = draw(batch["video"], seed=0, step=1, positions=range(2), shift=shift)
    return [
        loss_of_dense(dtype, held["video"], held["context"], noise, even),
        loss_of_dense(dtype, batch["video"], batch["context"], *drawn),
    ]


@both
def test_a_run_starts_as_the_dense_model_and_ends_sparse(tmp_path, given, name):
    rare = Checkpointer.Config(interval=20)
    config = adapting(name, tmp_path / "run", given, checkpoint=rare)
    config.validation.clips = 2
    trainer = config.build()
    start = weights(trainer)
    dense = awake_wan().state_dict()
    assert all(torch.equal(start[f"{of}.{k}"], dense[k]) for k in dense for of in ("model", "ema"))
    gates = [k for k in start if k.startswith("model.") and k[6:] not in dense]
    assert len(gates) == (4 if "vsa" in name else 0) and not any(start[k].any() for k in gates)

    history = trainer.train()
    trainer.close()
    ours = torch.tensor([history.validation[0][1], history.steps[0].loss])
    plain, exact = (first_losses(config, dtype) for dtype in (torch.float32, torch.float64))
    assert_accurate([*ours], [plain], exact)
    assert [step for step, _ in history.validation] == [0, 10, 20]
    slots = [block.self_attn.slot for block in trainer.model.layers.values()]
    rules = trainer.annealing._rules
    assert all(slot.kv_rule is rule for slot, rule in zip(slots, rules, strict=True))
    assert trainer.annealing.tiles_at(20) == (6 if "vsa" in name else 3)
    end = weights(trainer)
    assert all(not torch.equal(start[k], end[k]) for k in start), "all weights and averages move"


@both
def test_a_killed_run_goes_on_as_if_it_had_not_been_and_without_the_weights(tmp_path, given, name):
    own = tmp_path / "weights"
    shutil.copytree(given[1], own)
    changes = dict(steps=7, validation=QUIET)
    numbers, straight = run(adapting(name, tmp_path / "straight", (given[0], own), **changes))
    config = adapting(name, tmp_path / "resumed", (given[0], own), **changes)
    first, _ = run(config, until=4)  # the checkpoint is of step 3
    shutil.rmtree(own)
    second, resumed = run(config)
    assert first == numbers[:4] and second == numbers[3:]
    assert equal(resumed, straight)


def refused(config):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        config.build()
    (line,) = str(error.value).splitlines()
    return line


def test_either_model_of_a_pair_trains_on_its_own_side(tmp_path, given):
    for name in ("high_noise_model", "low_noise_model"):
        shutil.copytree(given[1], tmp_path / "own" / name)

    def config(name, **changes):
        pair = given[0], tmp_path / "own" / name
        return adapting("debug_vsa_adapt", tmp_path / "run", pair, **changes)

    sides = {"high_noise_model": dict(least=0.875), "low_noise_model": dict(most=0.875)}
    assert "high_noise_model for noise above 0.875 and low_noise_model" in refused(config(""))
    for name in sides:
        line = refused(config(name))
        assert f"{name} is one of two models" in line and "give --flow.least" in line
        other = next(s for n, s in sides.items() if n != name)
        assert "is one of two models" in refused(config(name, flow=FlowConfig(**other)))
    low = config("low_noise_model", flow=FlowConfig(shift=3.0, most=0.875))
    assert "flow.most is 0.875, and samples start from noise" in refused(low)
    low.validation.sample_steps = 0
    trainer = low.build()
    times = torch.cat([given[-1] for step in range(1, 9) for given in trainer.feed.step(step)])
    _, time, _ = trainer.validator.noisy(0.9)
    assert times.max() < 0.875 and time.item() == 0.875
    trainer.close()


def test_what_is_no_text_to_video_is_refused(tmp_path, given):
    for changes in (dict(in_channels=36), dict(image_dim=24), dict(out_channels=8)):
        config = adapting("debug_vsa_adapt", tmp_path / "run", given)
        config.model = replace(config.model, **changes)
        assert "only text-to-video can be trained" in refused(config)
    config.model = replace(config.model, in_channels=48, out_channels=48)
    assert "model.in_channels is 48, dataloader.channels 16" in refused(config)


def test_what_cannot_start_is_refused_before_anything_is_written(tmp_path, given):
    def config(**changes):
        made = adapting("debug_vsa_adapt", tmp_path / "run", given, **changes)
        made.dataloader = None  # whoever got as far as the data would fail there
        return made

    lost = InitialConfig(weights=str(tmp_path / "nowhere"))
    assert "nowhere: no such file or folder" in refused(config(initial=lost))
    (tmp_path / "empty").mkdir()
    empty = InitialConfig(weights=str(tmp_path / "empty"))
    assert "empty holds no diffusion_pytorch_model" in refused(config(initial=empty))
    assert "--initial.weights DIR" in refused(config(initial=InitialConfig(required=True)))
    other = config()
    other.model = replace(other.model, ffn=256, layers=3)
    line = refused(other)
    assert "ffn 128, not 256" in line and "layers 2, not 3" in line
    smaller = adapting("debug_vsa_adapt", tmp_path / "run", given)
    smaller.model = replace(smaller.model, video=(3, 8, 8))
    assert "model.video is (3, 8, 8), but the dataloader's" in refused(smaller)
    twice = config()
    twice.checkpoint.initial_load_path = "/elsewhere/step-1"
    assert "give one of them" in refused(twice)
    without = tiny(tmp_path / "run", initial=InitialConfig(weights=str(given[1])))
    assert "VideoDiTConfig knows no files but the trainer's own" in refused(without)
    for bad in ("", str(tmp_path / "nowhere"), str(tmp_path / "empty")):
        lost = adapting("debug_vsa_adapt", tmp_path / "run", given)
        lost.dataloader = replace(lost.dataloader, path=bad)
        assert bad in refused(lost)
    (tmp_path / "file").touch()
    occupied = adapting("debug_vsa_adapt", tmp_path / "file" / "run", given)
    occupied.dataloader = None
    with pytest.raises(OSError, match="file"):
        occupied.build()
    assert not (tmp_path / "run").exists()


def test_gates_that_the_weights_have_are_kept_and_bsa_refuses_them(tmp_path, given):
    schedule = SparsityConfig(schedule=DenseWarmup(steps=1), break_even=0.0)
    config = adapting("debug_vsa_adapt", tmp_path / "unused", given)
    model = config.model.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    save(model, tmp_path / "vsa", "diffusers")
    again = adapting("debug_vsa_adapt", tmp_path / "run", (given[0], tmp_path / "vsa"), steps=1)
    trainer = replace(again, sparsity=schedule, validation=QUIET).build()
    trainer.close()
    start, due = weights(trainer), model.state_dict()
    assert all(torch.equal(start[f"model.{k}"], due[k]) for k in due)
    bsa = adapting("debug_bsa_adapt", tmp_path / "bsa", (given[0], tmp_path / "vsa"))
    assert "gates left over" in refused(bsa)
