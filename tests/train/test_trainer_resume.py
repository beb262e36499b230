"""An interrupted run ends as if it had not been, bit for bit; another run's is not gone on with."""

import json
from dataclasses import replace

import pytest
import torch
from trainer_runs import SPARSE, run, tiny, weights

from models.attention import Dense
from train.distributed import parallelize
from train.flow import FlowConfig
from train.records.run_dir import CONFIG, check_config, write_config
from train.weights import initial
from train.weights.checkpoint import Checkpointer, complete_steps
from train.weights.ema import EMA


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_resuming_equals_going_on(tmp_path, mode):
    config = tiny(
        tmp_path / "straight",
        global_batch_size=8,
        checkpoint=Checkpointer.Config(interval=3, async_mode=mode),
    )
    numbers, straight = run(config)
    config = replace(config, dump_folder=str(tmp_path / "resumed"))
    first, _ = run(config, until=4)  # the checkpoint is of step 3: step 4 is done again
    second, resumed = run(config)
    assert first == numbers[:4]
    assert second == numbers[3:]
    assert equal(resumed, straight)
    assert any("gate" in name for name in straight), "the sparse layers' own weights are among them"


def test_a_finished_run_goes_on_with_more_steps(tmp_path):
    run(tiny(tmp_path, steps=2))
    numbers, _ = run(tiny(tmp_path, steps=3))
    assert len(numbers) == 1
    assert complete_steps(tmp_path / "checkpoint") == [2, 3]


def test_another_configs_checkpoint_is_refused_before_data_and_model(tmp_path):
    run(tiny(tmp_path, steps=1))
    other = tiny(tmp_path, steps=1, attention=Dense(), seed=7, ema=EMA.Config(decay=0.5))
    other.dataloader = None  # whoever got as far as the data would fail there
    with pytest.raises(ValueError) as error:
        other.build()
    line = str(error.value)
    assert "\n" not in line and "--dump-folder" in line
    assert "model.attention.class (VSA there, Dense here)" in line
    assert "training.seed (0 there, 7 here)" in line
    assert "ema.decay (0.999 there, 0.5 here)" in line
    assert "local_batch_size" not in line, "only what differs is named"


def test_what_may_change_between_two_starts(tmp_path):
    run(tiny(tmp_path, steps=1))
    config = tiny(tmp_path, steps=2, local_batch_size=2, global_batch_size=4, compile=False)
    config.dataloader.num_workers = 1
    numbers, _ = run(config)
    assert len(numbers) == 1


@pytest.mark.parametrize("relative", [False, True])
def test_weights_of_another_run_start_a_new_one(tmp_path, monkeypatch, relative):
    _, trained = run(tiny(tmp_path / "first", steps=1))
    path = str(tmp_path / "first" / "checkpoint" / "step-1")
    if relative:
        monkeypatch.chdir(tmp_path)
        path = " first/../first/checkpoint/step-1/"
    start = Checkpointer.Config(initial_load_path=path)
    config = tiny("second" if relative else tmp_path / "second", checkpoint=start)
    trainer = config.build()
    trainer.close()
    assert trainer.step == 0
    found = weights(trainer)
    assert all(torch.equal(found[k], trained[k]) for k in found if k.startswith("model."))
    assert all(torch.equal(found[k], found["model" + k[3:]]) for k in found if k.startswith("ema."))


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    run(tiny(tmp_path / "first", steps=1))
    for name, words in [
        ("first", "step-1"),
        ("first/checkpoint", "step-1"),
        ("first/checkpoint/step-7", "step-1"),
        ("nowhere/step-1", "RUN/checkpoint/step-N"),
    ]:
        start = Checkpointer.Config(initial_load_path=str(tmp_path / name))
        with pytest.raises(ValueError, match=rf"{name} is no whole checkpoint: give .*{words}"):
            tiny(tmp_path / "second", checkpoint=start).build()
    assert not (tmp_path / "second").exists()
    assert Checkpointer.Config(initial_load_path="gs://a/step-1").initial_load_path[:5] == "gs://"


def test_weights_that_do_not_fit_are_refused_in_a_line(tmp_path):
    run(tiny(tmp_path / "dense", steps=1, attention=Dense()))
    path = str(tmp_path / "dense" / "checkpoint" / "step-1")
    config = tiny(tmp_path / "sparse", checkpoint=Checkpointer.Config(initial_load_path=path))
    with pytest.raises(ValueError, match="does not fit this run: .*gate") as error:
        config.build()
    assert "\n" not in str(error.value)


def test_a_run_never_goes_on_from_weights_that_its_own_checkpoint_lacks(tmp_path):
    """Adapting layers may take another run's dense weights; here nobody has drawn their own."""
    run(tiny(tmp_path, steps=1, attention=Dense()))
    (tmp_path / "config.json").unlink()  # else the config alone is refused
    with pytest.raises(ValueError, match="does not fit this run: .*gate"):
        tiny(tmp_path, steps=2, attention=replace(SPARSE, adapt=True)).build()


def test_all_processes_go_on_from_the_last_step_that_one_of_them_sees(tmp_path, monkeypatch):
    run(tiny(tmp_path, steps=1))

    monkeypatch.setattr(initial, "complete_steps", lambda folder: [])
    monkeypatch.setattr(initial, "_furthest", lambda mine: 1 if mine is None else mine)
    monkeypatch.setattr(Checkpointer, "_find_load_step", lambda self: -1)
    monkeypatch.setattr(initial, "first_model", lambda config: pytest.fail("started anew"))
    config = tiny(tmp_path, steps=2)
    trainer = config.build()
    trainer.close()
    assert trainer.step == 1


def test_more_processes_than_gpus_are_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr(parallelize, "device_type", "cuda")
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="process 2 .* finds 2 devices.*--nproc-per-node 2"):
        parallelize.init_process_group(60)


def test_a_field_that_has_come_since_a_run_began_had_its_default(tmp_path):
    config = tiny(tmp_path)
    write_config(tmp_path, config)
    path = tmp_path / CONFIG
    written = json.loads(path.read_text())
    del written["flow"]["most"]
    path.write_text(json.dumps(written))
    check_config(tmp_path, config)
    with pytest.raises(ValueError, match=r"flow.most \(1.0 there, 0.5 here\)"):
        check_config(tmp_path, replace(config, flow=FlowConfig(most=0.5)))
    del written["model"]["dim"]  # which has no default
    path.write_text(json.dumps(written))
    with pytest.raises(ValueError, match=r"model.dim \(absent there, 32 here\)"):
        check_config(tmp_path, config)
