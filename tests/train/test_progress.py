"""A bar with the time left on a terminal, plain lines elsewhere."""

import io
import sys

import pytest

from train.log import Console, held, logger, time_text, to_file
from train.records.history import StepRecord
from train.records.progress import Progress

RECORD = StepRecord(step=5, loss=0.5, grad_norm=1.25, lr=1e-3, seconds=2.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, caplog, stream, show=True):
    monkeypatch.setattr(sys, "stderr", stream)
    with caplog.at_level("INFO", "train"), Progress(step=3, steps=10, show=show) as progress:
        progress.report(RECORD, tokens=1234.0)
    console = [record for record in caplog.records if Console().filter(record)]
    return stream.getvalue(), "\n".join(record.getMessage() for record in console)


def test_bar_on_a_terminal(monkeypatch, caplog):
    bar, lines = shown(monkeypatch, caplog, Terminal())
    assert "5/10" in bar and "loss 0.5000, 1,234 tokens/s" in bar and "<" in bar
    assert not lines
    assert "step 5/10  loss 0.5000" in caplog.text, "train.log has the line in any case"


def test_lines_elsewhere(monkeypatch, caplog):
    bar, lines = shown(monkeypatch, caplog, io.StringIO())
    assert not bar
    assert "step 5/10  loss 0.5000  lr 1.00e-03  grad norm 1.250  1,234 tokens/s" in lines
    assert "2.00 s/step  10 s left" in lines


def test_only_one_rank_shows(monkeypatch, caplog):
    assert shown(monkeypatch, caplog, Terminal(), show=False) == ("", "")


@pytest.mark.parametrize("seconds, text", [(5.4, "5 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_time_text(seconds, text):
    assert time_text(seconds) == text


def test_lines_that_are_held_come_first_in_the_file(tmp_path):
    with held() as lines:
        logger.info("a %s", "clip")
    logger.info("between")
    with to_file(tmp_path / "run" / "train.log", lines):
        logger.info("b")
    said = (tmp_path / "run" / "train.log").read_text().splitlines()
    assert [line.split("  ")[1] for line in said] == ["a clip", "b"]
