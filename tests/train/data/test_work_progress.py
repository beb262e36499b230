import sys

from train.data import progress
from train.data.progress import WorkProgress


def test_a_log_gets_a_line_now_and_then_with_the_time_left(monkeypatch):
    clock, said = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with WorkProgress("sawing", 4, seconds_between=15, say=said.append) as work:
        for clock[0], done in ((10, 0), (20, 0), (25, 1), (40, 2)):
            work.show(done, f"log {done}")
    assert said == ["sawing: 0 %, log 0", "sawing: 50 %, 40 s left, log 2"]


def test_a_terminal_gets_a_bar_instead(monkeypatch, capsys):
    said = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with WorkProgress("sawing", 4, seconds_between=0, say=said.append) as work:
        work.bar.delay = 0
        work.show(2, "log 2")
        work.bar.refresh()
    assert not said and "sawing: 50 %" in capsys.readouterr().err
