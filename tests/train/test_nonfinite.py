"""Steps whose loss or gradient is no number leave no trace but a count, and end a run of them."""

from collections.abc import Sequence
from dataclasses import replace
from unittest import mock

import pytest
import torch
from trainer_runs import tiny, weights

from train.flow import flow_loss
from train.nonfinite import NonFiniteError
from train.records.metrics import Metrics
from train.trainer import Trainer
from train.weights.checkpoint import Checkpointer, complete_steps

NAN = float("nan")
QUIET = Checkpointer.Config(enable=False)


def poison(trainer: Trainer, steps: Sequence[int], value: float = NAN) -> None:
    """Multiply the videos of the batches of these steps; before the trainer takes its first."""
    loader, step = trainer.dataloader, trainer.step
    collate = loader.collate

    def poisoned(clips: list) -> dict:
        nonlocal step
        step += 1
        batch = collate(clips)
        return {**batch, "video": batch["video"] * value} if step in steps else batch

    loader.collate = poisoned


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Weights, average, moments and the optimizer's count of steps."""
    moments = trainer.optimizers.state_dict()
    tensors = {k: v.clone() for k, v in moments.items() if isinstance(v, torch.Tensor)}
    assert any("exp_avg_sq" in k for k in tensors) and any(k.endswith("step") for k in tensors)
    return weights(trainer) | tensors


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("implementation", ["fused", "foreach"])
@pytest.mark.parametrize("value", [NAN, 1e30])
def test_a_skipped_step_changes_nothing_but_the_position(tmp_path, value, implementation, caplog):
    config = tiny(tmp_path, steps=9)
    config.optimizer = replace(config.optimizer, implementation=implementation)
    trainer = config.build()
    poison(trainer, [5], value)
    trainer.train(until=4)
    before, lr = state(trainer), trainer.lr_schedulers.schedulers[0].get_last_lr()
    trainer.train(until=5)
    assert equal(state(trainer), before)
    assert trainer.lr_schedulers.schedulers[0].get_last_lr() != lr, "it follows the steps"
    trainer.train()
    trainer.close()
    assert not equal(state(trainer), before)
    assert all(x.isfinite().all() for x in state(trainer).values())
    (skipped,) = trainer.history.skipped
    assert skipped.step == 5 and not skipped.finite
    assert [record.step for record in trainer.history.steps] == [1, 2, 3, 4, 6, 7, 8, 9]
    assert trainer.dataloader.position == 9 * 4
    assert "step 5 skipped: its loss is" in caplog.text and "(1 in a row, 1 in all)" in caplog.text


def test_an_infinite_loss_with_a_finite_gradient_is_skipped_too(tmp_path):
    trainer = tiny(tmp_path, steps=2, checkpoint=QUIET).build()
    trainer.train(until=1)
    before = state(trainer)
    with mock.patch("train.losses.flow_loss", lambda *given: flow_loss(*given) + torch.inf):
        trainer.train()
    trainer.close()
    assert trainer.history.skipped[0].loss == float("inf")
    assert equal(state(trainer), before)


def test_so_many_in_a_row_end_the_run_and_a_new_start_is_past_them(tmp_path):
    config = tiny(tmp_path, steps=12, metrics=Metrics.Config(log_freq=1, enable_tensorboard=False))
    trainer = config.build()
    poison(trainer, [2, 5, 6, 7])
    with pytest.raises(NonFiniteError) as error:
        trainer.train()
    trainer.close()
    line = str(error.value)
    assert "5 (its loss is nan), 6 (its loss is nan), 7 (its loss is nan)" in line
    assert "3 steps in a row" in line and "saved at step 7" in line and "\n" not in line
    assert complete_steps(tmp_path / "checkpoint") == [3, 6, 7]
    again = config.build()
    assert again.step == 7 and again.dataloader.position == 7 * 4, "what is bad lies behind it"
    assert (again.skipped.total, again.skipped.in_a_row) == (4, 0)
    again.train(until=8)
    assert again.history.steps[-1].finite
    again.close()


def test_a_run_in_which_no_step_is_good_saves_nothing(tmp_path):
    trainer = tiny(tmp_path).build()
    poison(trainer, range(1, 9))
    with pytest.raises(NonFiniteError, match="nothing was saved, since no step"):
        trainer.train()
    trainer.close()
    assert complete_steps(tmp_path / "checkpoint") == []


def test_good_steps_that_checkpoint_enable_leaves_unsaved_are_not_denied(tmp_path):
    trainer = tiny(tmp_path, checkpoint=QUIET).build()
    poison(trainer, [3, 4, 5])
    with pytest.raises(NonFiniteError) as error:
        trainer.train()
    trainer.close()
    assert "; not saved (checkpoint.enable), and step 2 was the last good one: " in str(error.value)


def test_the_row_goes_on_over_a_resumed_start(tmp_path):
    config = tiny(tmp_path, steps=9, max_skipped=4)
    trainer = config.build()
    poison(trainer, [2, 3])
    trainer.train(until=3)
    trainer.close()
    again = config.build()
    assert (again.skipped.total, again.skipped.in_a_row) == (2, 2)
    poison(again, [4, 5])
    with pytest.raises(NonFiniteError, match="4 steps in a row .* 4 .*, 5 "):
        again.train()
    again.close()


@pytest.mark.parametrize(
    "bad, row, in_a_row",
    [
        ([3, 4, 5], [3, 4, 5], 0),
        ([1, 2, 3, 6, 9], [1, 2, 3], 1),
        ([3, 4, 6, 7, 8, 9], [6, 7, 8, 9], 0),
    ],
)
def test_what_is_said_of_bad_steps_that_are_read_late_is_true(tmp_path, bad, row, in_a_row):
    late = Metrics.Config(log_freq=9, enable_tensorboard=False)
    config = tiny(tmp_path, steps=9, metrics=late, checkpoint=Checkpointer.Config(interval=9))
    trainer = config.build()
    start = weights(trainer)
    poison(trainer, bad)
    with pytest.raises(NonFiniteError) as error:
        trainer.train()
    trainer.close()
    named = ", ".join(f"{step} (its loss is nan)" for step in row)
    good = [record.step for record in trainer.history.steps]
    assert good == sorted({*range(1, 10)} - {*bad})
    said = (
        f"{len(row)} steps in a row skipped, which training.max_skipped allows no more of: {named}"
    )
    assert f"{said}; saved at step 9 with the weights of step {good[-1]}" in str(error.value)
    again = config.build()
    assert equal(weights(again), weights(trainer)) and not equal(weights(again), start)
    assert (again.step, again.skipped.total, again.skipped.in_a_row) == (9, len(bad), in_a_row)
    again.close()


def test_at_least_one_must_be_allowed(tmp_path):
    with pytest.raises(ValueError, match="max_skipped is 0: give at least 1"):
        tiny(tmp_path, max_skipped=0).build()
