"""Two processes train on latents as one does, and count what they replace together."""

from pathlib import Path

import pytest
import torch
from fastvideo_records import expected
from layout_ranks import measured, sums
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_trainer_layouts import clips_by_rank
from test_trainer_ranks import assert_as_exact_as_plain, distance, exactly
from trained_ranks import (
    CLIPS,
    DAMAGED,
    HELD_OUT,
    LAYOUTS,
    SHAPE,
    STATS,
    latent_run,
    on_latents,
    write_damaged,
)
from trainer_runs import SPARSE, finish, start

TRAINED, STEPS, BATCH = CLIPS - HELD_OUT, 6, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the runs are: of two processes in each layout, and "alone"."""
    folder = tmp_path_factory.mktemp("ranks")
    write_damaged(folder / "latents")
    script = str(Path(__file__).with_name("trained_ranks.py"))
    said = finish(start(script, str(folder), ranks=2))
    (folder / "said.txt").write_text(said)
    torch.save(measured(latent_run(folder, "alone")), folder / "alone.pt")
    return folder


@pytest.fixture(scope="module")
def exact(folder):
    return exactly(SPARSE, **on_latents(folder))


@pytest.fixture(scope="module")
def order(folder) -> list[int]:
    """Which clip is due at each position of the data, in two epochs and a bit."""
    stream = latent_run(folder, "alone").dataloader.build(local_batch_size=BATCH).stream
    order = [stream.index(position) for position in range(STEPS * BATCH)]
    assert sorted(order[:TRAINED]) == sorted(order[TRAINED : 2 * TRAINED]) == [*range(TRAINED)]
    return order


def loaded(folder, layout):
    return [torch.load(folder / f"{layout}.{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_latents_give_the_curve_of_one_process(folder, exact, layout):
    ranks, one = loaded(folder, layout), torch.load(folder / "alone.pt")
    assert ranks[0]["numbers"] == ranks[1]["numbers"]
    for found in (one, ranks[0]):
        assert_as_exact_as_plain(found["numbers"], found["weights"], exact)
    assert distance(ranks[0]["validation"], one["validation"]) <= 2 * exact[2]
    assert len(one["validation"]) == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_latents_are_divided_without_overlap(folder, order, layout):
    ranks = loaded(folder, layout)
    assert ranks[0]["data"][0] == (2 if layout == "fsdp" else 1)
    by_step = [sum(given, []) for given in zip(*clips_by_rank(ranks), strict=True)]
    latents = [torch.from_numpy(expected(i, SHAPE, **STATS)[0]) for i in range(CLIPS)]
    number = {total: i for i, total in enumerate(sums(torch.stack(latents)))}
    got = [number[clip] for step in by_step for clip in step]
    assert [len(step) for step in by_step] == [BATCH] * STEPS
    for due, clip in zip(order, got, strict=True):
        assert clip == due or (due == DAMAGED != clip < TRAINED)


@pytest.mark.parametrize("layout", [*LAYOUTS, "alone"])
def test_clips_that_were_replaced_are_counted_over_all_ranks(folder, order, layout):
    damaged = [position for position, clip in enumerate(order) if clip == DAMAGED]
    assert {position % BATCH // 2 for position in damaged} == {0, 1}, "some on each of two ranks"
    (events,) = (folder / layout).glob("tb/*")
    board = EventAccumulator(str(events)).Reload()
    counted = [event.value for event in board.Scalars("train/clips_replaced")]
    assert counted == [sum(p < BATCH * (step + 1) for p in damaged) for step in range(STEPS)]


def test_each_rank_names_itself_where_it_meets_damage(folder):
    of_the_first = [(folder / layout / "train.log").read_text() for layout in LAYOUTS]
    said = [*of_the_first, (folder / "said.txt").read_text()]
    for rank, text in zip((0, 0, 1), said, strict=True):
        assert f"rank {rank} replaces damaged clips" in text
        assert f"rank {1 - rank} replaces" not in text
        assert "1 in 1 files so far" in text and "005.parquet, row group 0, row 0: " in text
