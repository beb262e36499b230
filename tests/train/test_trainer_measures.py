"""Validation, learning rate, history, TensorBoard: what a run tells about itself."""

import math
from dataclasses import replace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainer_runs import run, tiny

from models.attention import VSA, Dense
from train.feed import open_split
from train.flow import FlowConfig
from train.plan.cost import attention_cost
from train.records.metrics import Metrics, film_strip
from train.validation import Validator
from train.weights.checkpoint import Checkpointer
from train.weights.ema import EMA

QUIET = Checkpointer.Config(enable=False)
EACH_STEP = Validator.Config(interval=1, clips=7, sample_steps=2)


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """A run that validates, samples and logs at each step."""
    folder = tmp_path_factory.mktemp("validated")
    config = tiny(folder, steps=4, validation=EACH_STEP, checkpoint=QUIET)
    trainer = replace(config, metrics=Metrics.Config(log_freq=1)).build()
    trainer.train()
    trainer.close()
    return trainer, folder


def test_validation_is_the_same_number_twice(validated):
    trainer, _ = validated
    step, loss = trainer.history.validation[-1]
    with trainer.ema.applied():
        again = [trainer.validator.loss(trainer.model) for _ in range(2)]
    assert step == 4 and again == [loss, loss]
    other = trainer.config.validation.build(
        dataloader=open_split(trainer.config, trainer.ranks, "validation"),
        device=trainer.device,
        flow=FlowConfig(),
        ranks=trainer.ranks,
    )
    with trainer.ema.applied():
        assert other.loss(trainer.model) == loss, "nor does it hang on what was asked before"
    assert trainer.validator.loss(trainer.model) != loss, "it is of the averaged weights"


def test_validation_does_not_depend_on_the_batch_size(tmp_path, validated):
    trainer, _ = validated
    losses = []
    for size in (7, 4, 2, 1):  # 4 and 2 fill up with a clip that was there before
        other = tiny(tmp_path, local_batch_size=size, checkpoint=QUIET, validation=EACH_STEP)
        built = other.build()
        losses.append(built.validate())
        built.close()
    few = 7 * torch.finfo(torch.float32).eps  # a sum of 7 clips
    assert losses[1:] == pytest.approx(losses[:1] * 3, rel=few)


def test_validation_changes_nothing(tmp_path, validated):
    trainer, _ = validated
    numbers, _ = run(tiny(tmp_path, steps=4, checkpoint=QUIET))
    assert [(r.loss, r.grad_norm) for r in trainer.history.steps] == numbers


def test_history_has_what_a_comparison_needs(validated):
    history = validated[0].history
    assert [record.step for record in history.steps] == [1, 2, 3, 4]
    assert [step for step, _ in history.validation] == [0, 1, 2, 3, 4]
    assert all(record.seconds > 0 for record in history.steps)
    weights = sum(p.numel() * p.element_size() for p in validated[0].model.parameters())
    assert history.peak_memory > 4 * weights, "weights, gradients, two moments"


def test_tensorboard_has_numbers_and_samples(validated):
    trainer, folder = validated
    (events,) = folder.glob("tb/*")
    board = EventAccumulator(str(events), size_guidance={"images": 0}).Reload()
    n = trainer.model.tiling.num_tiles
    last = {tag: board.Scalars(tag)[-1].value for tag in board.Tags()["scalars"]}
    record = trainer.history.steps[-1]
    assert last["train/loss"] == pytest.approx(record.loss)
    assert last["train/lr"] == pytest.approx(record.lr)
    assert last["train/grad_norm"] == pytest.approx(record.grad_norm)
    assert last["speed/tokens_per_second"] == pytest.approx(4 * 32 / record.seconds)
    assert last["attention/sparsity"] == pytest.approx(1 - 3 / n)
    assert last["attention/flops_per_clip"] > 0
    assert last["validation/loss"] == pytest.approx(trainer.history.validation[-1][1])
    assert len(board.Images("samples")) == 5
    kinds = {tag.rpartition("/")[2] for tag in board.Tags()["images"]}
    assert kinds == {"samples", "chosen_tiles"}, "where every query stays there is none to show"
    log = (folder / "train.log").read_text()
    assert "step 3/4  loss" in log and "left" in log and "step 4  validation loss" in log


def test_dense_attention_costs_more():
    def cost(attention):
        model = replace(tiny("unused").model, video=(4, 64, 64), attention=attention)
        built = model.build()
        return attention_cost(built, built.top_k)

    dense, sparse = cost(Dense()), cost(VSA(tile=(2, 4, 4), top_k=2))
    assert dense["attention__sparsity"] == 0 and sparse["attention__sparsity"] == 1 - 2 / 8
    flops = [costs["attention__flops_per_clip"] for costs in (dense, sparse)]
    pairs = [256 * 256, 256 * 2 * 32 + 8 * 8]  # a row meets all rows, or two tiles' and all tiles
    assert flops == [2 * 7 / 2 * 4 * p * 32 for p in pairs]  # layers, 4 L^2 dim
    assert flops[1] < flops[0]


def test_learning_rate_warms_up_and_ends_where_it_says(tmp_path):
    config = tiny(tmp_path, steps=12, attention=Dense(), checkpoint=QUIET)
    config.lr_scheduler = replace(config.lr_scheduler, warmup_steps=4, min_lr_factor=0.1)
    trainer = config.build()
    rates = [record.lr / 3e-3 for record in trainer.train().steps]
    (end,) = trainer.lr_schedulers.schedulers[0].get_last_lr()
    trainer.close()
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1])
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(9)]
    assert rates[4:] == pytest.approx(cosine[:8]), "the lowest is due after the last step"
    assert end == pytest.approx(0.1 * 3e-3)


def test_ema_can_be_left_out(tmp_path):
    config = tiny(tmp_path, steps=1, ema=EMA.Config(enable=False), validation=EACH_STEP)
    trainer = config.build()
    trainer.train()
    assert trainer.history.validation[-1][1] == trainer.validator.loss(trainer.model)
    trainer.close()


@pytest.mark.parametrize("channels", [1, 2])
def test_a_latent_of_few_channels_is_shown_by_the_first(channels):
    clips = torch.rand(2, channels, 3, 4, 5) * 2 - 1
    strip = film_strip(clips)
    assert torch.equal(strip[0], strip[1]) and torch.equal(strip[0], strip[2])
    torch.testing.assert_close(strip[0, :4, :5] * 2 - 1, clips[0, 0, 0])


def test_film_strip_has_a_clip_a_row_and_time_from_left_to_right():
    frames = torch.arange(16.0).view(1, 16, 1, 1).expand(3, 16, 2, 5)
    clips = torch.stack([frames, frames + 1])
    strip = film_strip(clips / 8 - 1)
    assert strip.shape == (3, 2 * 2, 8 * 5)
    assert strip.min() == 0 and strip.max() <= 1
    assert (strip[:, 0].diff(dim=-1) >= 0).all() and strip[0, 0, 0] < strip[0, 2, 0]


def test_two_trainers_in_turns_keep_to_their_own_logs(tmp_path):
    trainers = [tiny(tmp_path / name, steps=2, checkpoint=QUIET).build() for name in "ab"]
    for until in (1, 2):
        for trainer in trainers:
            trainer.train(until)
    for trainer in trainers:
        trainer.close()
    for name in "ab":
        first, *steps = (tmp_path / name / "train.log").read_text().splitlines()
        assert f"/{name}: " in first
        assert ["step 1/2", "step 2/2"] == [line.split("  ")[1] for line in steps]
    a, b = (trainer.history.steps for trainer in trainers)
    assert [record.loss for record in a] == [record.loss for record in b]


def test_samples_at_times_that_are_not_learnt_are_refused(tmp_path):
    """As for a model of high noise: the sampler's last steps are the other model's."""
    asked = Validator.Config(interval=1, clips=2, sample_steps=4)
    config = tiny(tmp_path, flow=FlowConfig(least=0.3), validation=asked)
    with pytest.raises(
        ValueError, match="least is 0.3, and samples of 4 steps go down to time 0.25"
    ):
        config.build()
    tiny(tmp_path, flow=FlowConfig(least=0.25), validation=asked).build().close()
