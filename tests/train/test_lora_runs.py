"""Runs that train adapters: what moves and what is kept, resumed, exported."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from laws import assert_accurate
from trainer_runs import finish, run, start, tiny, weights
from wan_runs import LORA, QUIET, adapting, awake_wan, equal, inputs, lora

from models.attention import Dense
from models.wan.checkpoint import load
from train import export
from train.flow import draw
from train.weights.checkpoint import Checkpointer
from train.weights.lora import LoRAConfig, add_lora

both = pytest.mark.parametrize("name", ["debug_vsa_adapt", "debug_bsa_adapt"])


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return inputs(tmp_path_factory.mktemp("given"))


@both
def test_the_dense_weights_stay_bit_for_bit_and_resume_without_their_files(tmp_path, given, name):
    own = tmp_path / "weights"
    shutil.copytree(given[1], own)
    numbers, straight = run(lora(name, tmp_path / "straight", (given[0], own)))
    dense = awake_wan().state_dict()
    assert all(torch.equal(straight[f"model.{k}"], dense[k]) for k in dense)
    adapters = {k for k in straight if k.rpartition(".")[2] in ("lora_a", "lora_b")}
    gates = {k for k in straight if ".slot." in k}
    assert len(adapters) == 2 * 16 and len(gates) == (8 if "vsa" in name else 0)
    assert straight.keys() == adapters | gates | {f"model.{k}" for k in dense}
    assert all(straight[k].any() for k in adapters | gates)

    config = lora(name, tmp_path / "resumed", (given[0], own))
    first, _ = run(config, until=4)  # the checkpoint is of step 3
    shutil.rmtree(own)
    second, resumed = run(config)
    assert first == numbers[:4] and second == numbers[3:]
    assert equal(resumed, straight)


def test_a_run_starts_as_the_dense_model_and_holds_only_what_trains(tmp_path, given):
    plain = adapting("debug_vsa_adapt", tmp_path / "plain", given, steps=1, validation=QUIET)
    (due, *_), _ = run(plain)
    trainer = lora("debug_vsa_adapt", tmp_path / "run", given, steps=1).build()
    train = {id(p) for p in trainer.model.parameters() if p.requires_grad}
    groups = [g for optimizer in trainer.optimizers for g in optimizer.param_groups]
    assert {id(p) for g in groups for p in g["params"]} == train
    assert {id(p) for p in trainer.ema.weights} == train and len(train) == 16 + 4
    history = trainer.train()
    trainer.close()
    assert history.steps[0].loss == due[0], "bit for bit"
    log = (tmp_path / "run" / "train.log").read_text()
    assert f"weights from {given[1]}" in log
    assert f"LoRA of rank 4: {sum(p.numel() for g in groups for p in g['params']):,}" in log


@both
def test_an_export_has_them_merged(tmp_path, given, name):
    config = lora(name, tmp_path / "run", given, steps=2)
    _, trained = run(config)
    for options, kind in (((), "ema"), (("--raw",), "model")):
        out = tmp_path / kind
        arguments = ["--run", config.dump_folder, "--out", str(out), *options]
        assert export.main(arguments) == 0
        found = load(config.model, out).state_dict()
        for k, x in awake_wan().state_dict().items():
            layer = k.removesuffix(".weight")
            a, b = (trained.get(f"{kind}.{layer}.lora_{x}") for x in "ab")
            if a is None:
                assert torch.equal(found[k], x), k
                continue
            exact = x.double() + 1.5 * b.double() @ a.double()
            assert_accurate([found[k]], [[x + 1.5 * b @ a]], [exact])
            assert not torch.equal(found[k], x)
        gates = [k for k in found if ".slot." in k]
        assert len(gates) == (4 if "vsa" in name else 0)
        assert all(torch.equal(found[k], trained[f"{kind}.{k}"]) for k in gates)
    if not gates:
        assert WanTransformer3DModel.from_pretrained(out).config.num_layers == 2


def first_step(config, start, dtype):
    """Loss and norm of the gradient in plain PyTorch, of both clips at once; nothing is sparse."""
    model = replace(config.model, attention=Dense()).build()
    add_lora(model, LORA)
    model.load_state_dict({k.removeprefix("model."): x for k, x in start.items() if k[:2] == "mo"})
    batch = next(iter(config.dataloader.build(local_batch_size=2)))
    noise, t = draw(batch["video"], seed=0, step=1, positions=range(2), shift=config.flow.shift)
    numbers = (batch["video"], batch["context"], noise, t.view(-1, 1, 1, 1, 1))
    x0, context, noise, s = (x.to(dtype) for x in numbers)
    velocity = model.to(dtype)((1 - s) * x0 + s * noise, s.flatten(), context)
    loss = (velocity - (noise - x0)).square().mean()
    train = [p for p in model.parameters() if p.requires_grad]
    norms = [g.norm() for g in torch.autograd.grad(loss, train)]
    return [loss.detach(), torch.stack(norms).norm()]


def test_two_processes_train_what_one_would(tmp_path):
    given = inputs(tmp_path)
    script = Path(__file__).with_name("lora_ranks.py")
    finish(start(str(script), str(tmp_path), ranks=2))
    ours, other = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert ours["numbers"] == other["numbers"]
    assert equal(ours["start"], other["start"]) and equal(ours["end"], other["end"])
    config = lora("debug_bsa_adapt", tmp_path / "one", given)
    trainer = config.build()
    trainer.close()
    assert equal(ours["start"], weights(trainer)), "each process draws the same adapters"
    plain, exact = (first_step(config, ours["start"], d) for d in (torch.float, torch.double))
    assert_accurate([*torch.tensor(ours["numbers"][0])], [plain], exact)
    moved = {k for k, x in ours["end"].items() if not torch.equal(x, ours["start"][k])}
    assert moved == {k for k in ours["end"] if k.rpartition(".")[2] in ("lora_a", "lora_b")}


def test_adapters_for_what_the_trainer_trained_itself(tmp_path):
    _, dense = run(tiny(tmp_path / "first", steps=1, attention=Dense()))
    path = str(tmp_path / "first" / "checkpoint" / "step-1")
    targets = LoRAConfig(rank=2, targets=("up", "self_attention.out"))
    there = Checkpointer.Config(initial_load_path=path)
    config = tiny(tmp_path / "second", attention=Dense(), lora=targets, checkpoint=there)
    trainer = config.build()
    trainer.close()
    found = weights(trainer)
    assert all(torch.equal(found[k], x) for k, x in dense.items() if k.startswith("model."))


def test_another_rank_is_another_run_and_no_target_is_refused_before_anything(tmp_path, given):
    run(lora("debug_bsa_adapt", tmp_path / "run", given, steps=1))
    other = lora("debug_bsa_adapt", tmp_path / "run", given, lora=LoRAConfig(rank=5))
    with pytest.raises(ValueError, match=r"lora.rank \(4 there, 5 here\)"):
        other.build()
    wrong = replace(
        other, lora=LoRAConfig(rank=5, targets=("to_q",)), dump_folder=str(tmp_path / "x")
    )
    with pytest.raises(ValueError, match="no linear layer is called to_q; the model has"):
        wrong.build()
    assert not (tmp_path / "x").exists()
