"""Kills, signals, full disks: the last good checkpoint survives them all."""

import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from fault_runs import files_of_at_most, kill
from torch.distributed.checkpoint.utils import _DistWrapper
from trainer_runs import REPOSITORY, finish, run, start, tiny

from train.__main__ import main
from train.data.sources.digits import MovingDigits
from train.trainer import Trainer
from train.weights.checkpoint import Checkpointer, CheckpointNotSavedError, complete_steps


def test_kill_9_while_saving_leaves_the_checkpoint_before(tmp_path, caplog):
    _, straight = run(tiny(tmp_path / "straight"))
    run(tiny(tmp_path), until=3)
    folder = tmp_path / "checkpoint"
    finish(start(str(Path(__file__).with_name("killed_run.py")), str(tmp_path)), -signal.SIGKILL)
    assert complete_steps(folder) == [3], "what is not whole must not count"
    assert any((folder / "step-6").iterdir()), "it was killed after it had begun"
    numbers, resumed = run(tiny(tmp_path))
    assert "removed what a killed run left of step-6" in caplog.text
    assert len(numbers) == 3
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    assert complete_steps(folder) == [3, 6]


def test_going_back_asks_to_move_later_checkpoints_away(tmp_path):
    _, straight = run(tiny(tmp_path))
    back = tiny(tmp_path, checkpoint=Checkpointer.Config(interval=3, load_step=3))
    with pytest.raises(ValueError, match="also holds step-6.* move them away"):
        run(back)
    assert complete_steps(tmp_path / "checkpoint") == [3, 6]
    (tmp_path / "checkpoint" / "step-6").rename(tmp_path / "step-6")
    numbers, again = run(back)
    assert len(numbers) == 3 and complete_steps(tmp_path / "checkpoint") == [3, 6]
    assert all(torch.equal(again[name], straight[name]) for name in straight)


def test_sigterm_saves_and_leaves_and_the_same_command_goes_on(tmp_path):
    script, folder = str(REPOSITORY / "train" / "__main__.py"), str(tmp_path)
    command = (script, "--config", "debug_vsa", "--dump-folder", folder)
    options = ("--training.steps", "100000", "--validation.interval", "0")
    process = start(*command, *options)[0]
    log = tmp_path / "train.log"
    patience = time.monotonic() + 90
    while not (log.exists() and "step 2/" in log.read_text()):
        assert time.monotonic() < patience and process.returncode is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output = finish([process])
    (step,) = complete_steps(tmp_path / "checkpoint")
    assert f"SIGTERM: saved at step {step}" in output
    finish(start(*command, "--training.steps", str(step + 1), "--validation.interval", "0"))
    assert complete_steps(tmp_path / "checkpoint") == [step, step + 1]


def test_ctrl_c_ends_the_step_at_hand(tmp_path):
    trainer = tiny(tmp_path).build()
    real = trainer.train_step

    def train_step():
        if trainer.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        real()

    trainer.train_step = train_step
    before = signal.getsignal(signal.SIGINT)
    trainer.train()
    trainer.close()
    assert trainer.step == 2
    assert complete_steps(tmp_path / "checkpoint") == [2]
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_before_the_first_step_is_a_line(monkeypatch, caplog):
    def interrupted(self, config):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "__init__", interrupted)
    assert main(["--config", "debug_vsa"]) == 130
    assert caplog.records[-1].getMessage() == "interrupted before the first step: nothing is lost"


def die_reading(monkeypatch):
    def read(*_):
        time.sleep(1)  # until it is waited for
        kill()

    monkeypatch.setattr(MovingDigits, "__getitem__", read)
    return " as it waited for positions 0 to 3 of the data: clip "


def die_in_a_step(monkeypatch):
    others = set(multiprocessing.active_children())

    def backward(share):
        (worker,) = set(multiprocessing.active_children()) - others
        worker.kill()
        time.sleep(60)

    monkeypatch.setattr("train.trainer.backward", backward)
    return ": DataLoader worker"


@pytest.mark.parametrize("die", [die_reading, die_in_a_step])
def test_a_data_worker_that_dies_is_a_line(tmp_path, monkeypatch, caplog, die):
    said = die(monkeypatch)
    options = ["--dump-folder", str(tmp_path), "--dataloader.num-workers", "1"]
    began = time.monotonic()
    assert main(["--module", "fault_runs", "--config", "run", *options]) == 1
    assert time.monotonic() - began < 60, "at once, before dataloader.timeout_seconds"
    (error,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("error")]
    assert error.startswith(f"error: rank 0 lost a data worker{said}") and "\n" not in error
    assert "is killed by signal: Killed" in error and "timeout_seconds" not in error


def test_a_peer_that_is_gone_while_a_save_is_under_way_is_two_lines(tmp_path, monkeypatch, caplog):
    def lost(*_, **__):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")

    def train_step(trainer):
        seen.append(trainer)
        return lost() if trainer.step else plain(trainer)

    seen, plain = [], Trainer.train_step
    monkeypatch.setattr(_DistWrapper, "all_reduce", lost)  # in the thread that saves step 1
    monkeypatch.setattr(Trainer, "train_step", train_step)
    options = ["--dump-folder", str(tmp_path), "--checkpoint.async-mode", "async"]
    assert main(["--module", "fault_runs", "--config", "run", *options]) == 1
    first, second = (r.getMessage() for r in caplog.records if r.getMessage().startswith("error"))
    assert "waited for the others in step 2, and one of them is gone" in first
    assert "waited for the others in the saving that was under way, and one of them" in second
    assert "\n" not in first + second and complete_steps(tmp_path / "checkpoint") == []
    seen[0].checkpointer.close()  # as when it is deleted: the same is not raised again


def test_a_full_disk_is_named_and_training_goes_on(tmp_path, caplog):
    trainer = tiny(tmp_path, steps=9).build()
    trainer.train(until=3)
    with files_of_at_most(20_000):
        trainer.train(until=6)
    ours = [record for record in caplog.records if record.name == "train"]
    (line,) = [record.getMessage() for record in ours if record.levelno == logging.ERROR]
    assert "step-6 not saved: File too large" in line and "last good checkpoint is step-3" in line
    assert "\n" not in line
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["step-3"]
    with files_of_at_most(20_000), pytest.raises(CheckpointNotSavedError, match="step-3$"):
        trainer.train()  # the end of a run is not lost in silence
    assert complete_steps(tmp_path / "checkpoint") == [3]
    trainer.checkpointer.save_now(trainer.step)
    trainer.close()
    assert complete_steps(tmp_path / "checkpoint") == [3, 9]


def test_wherever_the_disk_fills_up_it_is_recognised(tmp_path):
    trainer = tiny(tmp_path, steps=1).build()
    trainer.train()
    (file,) = (tmp_path / "checkpoint" / "step-1").glob("*.distcp")
    size = file.stat().st_size
    for part in range(5):
        with files_of_at_most(size * part // 5), pytest.raises(CheckpointNotSavedError):
            trainer.checkpointer.save_now(2)
    trainer.close()
    assert complete_steps(tmp_path / "checkpoint") == [1]
