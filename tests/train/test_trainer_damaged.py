"""A run whose data is damaged goes on with other clips, and says how many; too many end it."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainer_runs import run, tiny

from train.__main__ import main
from train.data.order.damaged import DamagedClipError
from train.data.sources.digits import MovingDigits
from train.records.metrics import Metrics
from train.validation import Validator

VALIDATED = Validator.Config(interval=3, clips=8, sample_steps=0)


@pytest.fixture
def lose(monkeypatch):
    """lose(train, held_out): what a run of `tiny` would meet there is in files that are gone."""

    def lose(train, held_out=()):
        lost = set()
        for split, positions in (("train", train), ("validation", held_out)):
            loader = tiny("unused").dataloader.build(local_batch_size=4, split=split)
            if split == "validation":
                loader.keep(VALIDATED.clips)
            lost |= {loader.clips.first + loader.stream.index(p) for p in positions}
        plain = MovingDigits.__getitem__

        def read(self, index):
            if self.first + index in lost:
                raise DamagedClipError(Path(f"{index}.mp4"), f"{index}.mp4: it is gone")
            return plain(self, index)

        monkeypatch.setattr(MovingDigits, "__getitem__", read)

    return lose


def test_a_run_goes_on_and_counts_what_it_replaced(tmp_path, lose):
    straight, _ = run(tiny(tmp_path / "straight"))
    lose([9, 13], [1, 4, 6])
    log = Metrics.Config(log_freq=1, enable_tensorboard=True)
    found, _ = run(tiny(tmp_path / "damaged", metrics=log, validation=VALIDATED))
    assert len(found) == 6 and found[:2] == straight[:2] and found[2] != straight[2]
    (events,) = (tmp_path / "damaged").glob("tb/*")
    board = EventAccumulator(str(events)).Reload()
    assert [x.value for x in board.Scalars("train/clips_replaced")] == [0, 0, 1, 2, 2, 2]
    assert [x.value for x in board.Scalars("validation/clips_replaced")] == [3, 3, 3]
    log = (tmp_path / "damaged" / "train.log").read_text()
    assert log.count("replaces damaged clips") == 5 and log.count("it is gone") == 5


def test_too_many_are_an_error_of_a_line(tmp_path, lose, caplog):
    lose([5])
    options = ["--dump-folder", str(tmp_path), "--dataloader.max-damaged", "0"]
    assert main(["--module", "fault_runs", "--config", "run", *options]) == 1
    (error,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("error")]
    assert "met 1 files with damaged clips, and --dataloader.max-damaged is 0" in error
    assert "\n" not in error and caplog.records[-1].levelno == logging.ERROR


def test_a_run_goes_on_with_more_damage_allowed(tmp_path):
    run(tiny(tmp_path), until=3)
    config = tiny(tmp_path)
    numbers, _ = run(replace(config, dataloader=replace(config.dataloader, max_damaged=99)))
    assert len(numbers) == 3
