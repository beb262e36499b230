"""What a trainer shows of its attention, and that showing it changes no training."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import seeds
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainer_runs import run, tiny

from flexsparse import Threshold
from models.attention import BSA, Dense
from train.records.metrics import DARK, Metrics, chosen_tiles, film_strip, kept_queries
from train.sparsity.attention_stats import attention_stats, kept_pixels
from train.validation import Validator
from train.weights.checkpoint import Checkpointer

PRUNING = BSA(kv=Threshold(2.0), window=(1, 2, 2), tile=(1, 2, 2))


@given(st.data())
def test_the_dark_pixels_are_those_of_dropped_tokens(data):
    grid = tuple(data.draw(st.integers(1, 4)) for _ in range(3))
    patch = tuple(data.draw(st.integers(1, 3)) for _ in range(3))
    size = tuple(g * p for g, p in zip(grid, patch))
    generator = torch.Generator().manual_seed(data.draw(seeds))
    kept = torch.rand(2, *grid, generator=generator) < 0.5
    lit = kept_pixels(kept, size)
    whole = kept
    for axis, p in enumerate(patch):
        whole = whole.repeat_interleave(p, axis + 1)
    assert torch.equal(lit, whole)
    clip = torch.rand(4, *size, generator=generator)
    frame = film_strip(clip[None, :, size[0] // 2][:, :, None])
    image = kept_queries(clip, kept).unflatten(2, (2, size[2]))
    for head in range(2):
        shown, bright = image[:, :, head], lit[head, size[0] // 2]
        assert torch.equal(shown[:, bright], frame[:, bright])
        assert torch.equal(shown[:, ~bright], DARK * frame[:, ~bright])


@given(seeds)
def test_chosen_tiles_are_bright_their_chooser_green_and_all_else_dark(seed):
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, 3, (3, 4, 2, 3), generator=generator, dtype=torch.uint8)
    clip = torch.rand(5, 4, 4, 6, generator=generator)
    image = chosen_tiles(clip, chosen, heads=2).unflatten(2, (4, 6)).unflatten(1, (2, 4))
    for head in range(2):
        for t in range(4):
            of_pixels = chosen[head, t].repeat_interleave(2, 0).repeat_interleave(2, 1)
            frame, shown = (clip[:3, t] + 1) / 2, image[:, head, :, t]
            assert torch.equal(shown[:, of_pixels == 1], frame[:, of_pixels == 1])
            assert torch.equal(shown[:, of_pixels == 0], DARK * frame[:, of_pixels == 0])
            own = shown[:, of_pixels == 2] - frame[:, of_pixels == 2] / 2
            assert torch.allclose(own[1], torch.tensor(0.5)) and not own[::2].any()


def config(folder, attention=PRUNING, **changes):
    return tiny(
        folder,
        attention=attention,
        steps=3,
        checkpoint=Checkpointer.Config(enable=False),
        **changes,
    )


@pytest.mark.parametrize("mode", ["none", "full"])
def test_asking_changes_no_training(tmp_path, mode):
    asked = Validator.Config(interval=1, clips=4, sample_steps=0)
    changes = dict(activation_checkpoint=mode)
    numbers, weights = run(config(tmp_path / "asked", validation=asked, **changes))
    plain_numbers, plain = run(config(tmp_path / "plain", **changes))
    assert numbers == plain_numbers
    assert all(torch.equal(weights[name], plain[name]) for name in plain)


def test_a_pass_leaves_no_trace(tmp_path):
    trainer = config(tmp_path, validation=Validator.Config(interval=1, sample_steps=0)).build()
    trainer.train_step()
    state = torch.get_rng_state()
    inputs = trainer.validator.noisy()
    first, second = (attention_stats(trainer.model, *inputs) for _ in range(2))
    assert all(torch.equal(a.kept, b.kept) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(inputs, trainer.validator.noisy()))
    trainer.close()


def test_tensorboard_has_what_each_layer_did(tmp_path):
    trainer = config(
        tmp_path,
        validation=Validator.Config(interval=2, clips=4, sample_steps=0),
        metrics=Metrics.Config(log_freq=1),
    ).build()
    trainer.train()
    with trainer.averaged() as model:
        layers = attention_stats(model, *trainer.validator.noisy())
    trainer.close()
    (events,) = tmp_path.glob("tb/*")
    board = EventAccumulator(str(events), size_guidance={"images": 0, "histograms": 0}).Reload()
    for i, layer in enumerate(layers):
        name = f"attention/layer{i}"
        assert [event.step for event in board.Scalars(f"{name}/sparsity")] == [0, 2, 3]
        assert board.Scalars(f"{name}/sparsity")[-1].value == pytest.approx(layer.sparsity)
        assert board.Scalars(f"{name}/flops_per_clip")[-1].value == pytest.approx(layer.flops)
        histogram = board.Histograms(f"{name}/admitted_tiles")[-1].histogram_value
        assert histogram.num == layer.admitted.numel()
        assert histogram.sum == layer.admitted.sum()
        image = board.Images(f"{name}/kept_queries")[-1]
        assert (image.height, image.width) == (32, 2 * 32)
        assert board.Images(f"{name}/chosen_tiles")[-1].height == 2 * 32


def test_where_nothing_is_chosen_curves_are_all(tmp_path):
    trainer = config(
        tmp_path,
        Dense(),
        validation=Validator.Config(interval=2, clips=4, sample_steps=0),
        metrics=Metrics.Config(log_freq=1),
    ).build()
    trainer.validate()
    trainer.close()
    (events,) = tmp_path.glob("tb/*")
    board = EventAccumulator(str(events)).Reload()
    assert board.Scalars("attention/layer1/sparsity")[-1].value == 0
    assert board.Tags()["images"] == board.Tags()["histograms"] == []
