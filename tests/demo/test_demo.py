"""The whole demo on tiny settings and videos of moving digits, without a network."""

import logging
import multiprocessing
import os
import signal
import time
from dataclasses import replace

import forked
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from train.demo import run as demo
from train.demo.__main__ import main
from train.demo.measure import SlotCall, Trial, try_steps
from train.demo.settings import RUNS, Settings


def test_the_demo_runs_and_runs_again_on_a_slow_machine(
    tmp_path, videos, tiny, monkeypatch, capsys
):
    out = tmp_path / "demo"
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: forked.CONTEXT)
    forked.get_ready()
    level = logging.getLogger("train.data").level
    demo.run(tiny, out, videos)
    assert logging.getLogger("train.data").level == level, "later runs of this process are heard"
    said = capsys.readouterr().out
    assert "of the 31 other tiles" in said
    assert "| loss on held-out clips" in said and str(out / "report.md") in said
    text = (out / "report.md").read_text()
    pictures = ("copies.png", "copies_losses.png", "losses.png", "tiles.png", "samples.gif")
    for picture in pictures:
        assert f"]({picture})" in text
        with Image.open(out / picture) as image:
            assert image.width > 60 and getattr(image, "n_frames", 1) in (1, tiny.video[0])
    for name in ("copies", *RUNS):
        assert len(list((out / name).glob("tb/*/events*"))) == 1

    mine = out / "notes.txt"
    mine.write_text("not the demo's")
    slow = Trial(2**20, tiny.seconds / 6)  # of which two steps of all runs fit
    monkeypatch.setattr(demo, "try_steps", lambda config: slow)
    demo.run(tiny, out, videos)
    assert "for 2 steps, from the same weights" in (out / "report.md").read_text()
    assert mine.exists()
    for name in RUNS:  # the first one's logs are gone
        assert len(list((out / name).glob("tb/*/events*"))) == 1


def test_attention_is_timed_in_the_dtype_of_training(tmp_path, videos, tiny, monkeypatch):
    timed: list[SlotCall] = []

    def take_calls(runs, repeats):
        timed.extend(call for calls in runs.values() for call in calls)
        raise InterruptedError

    def in_bfloat16(self, *args):
        config = real(self, *args)
        return replace(config, training=replace(config.training, param_dtype="bfloat16"))

    real = Settings.trainer
    monkeypatch.setattr(Settings, "trainer", in_bfloat16)
    monkeypatch.setattr(demo, "try_steps", lambda config: Trial(2**20, tiny.seconds / 6))
    monkeypatch.setattr(demo, "attention_seconds", take_calls)
    with pytest.raises(InterruptedError):
        demo.run(tiny, tmp_path / "demo", videos)
    assert len(timed) == len(RUNS) * tiny.layers and not dist.is_initialized()
    for call in timed:
        tensors = [*call.slot.parameters(), *call.inputs[:-1]]
        assert {x.dtype for x in tensors} == {torch.bfloat16}


def test_a_trial_that_fails_says_why(videos, tiny, tmp_path):
    config = tiny.trainer("dense", videos, tmp_path, 4)
    config.dataloader.path = str(tmp_path / "nowhere")
    with pytest.raises(RuntimeError, match="trial training steps failed: .*no folder.*nowhere"):
        try_steps(config)


def test_a_missing_folder_is_one_line(tmp_path, capsys):
    arguments = ["--clips", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: no folder of videos at ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_cleanly(tmp_path, videos, number):
    """In the middle of training that would go on for hours."""
    script = tmp_path / "demo.py"
    script.write_text(
        "import sys, train.demo.__main__ as demo, train.demo.run as run\n"
        "from train.demo.measure import Trial\n"
        "from train.demo.opening import Opening\n"
        "from train.demo.settings import Settings\n"
        "run.try_steps = lambda config: Trial(2**20, 0.01)\n"
        "demo.settings = lambda: Settings(video=(8, 32, 32), dim=32, layers=1, ffn=32, fps=10,"
        " steps=10**6, seconds=1e9, validations=2, opening=Opening(steps=1))\n"
        f"sys.exit(demo.main(['--clips', {str(videos)!r}, '--out', {str(tmp_path)!r}]))"
    )
    child = forked.Forked(str(script), env=os.environ)
    try:
        deadline = time.monotonic() + 120
        while child.returncode is None and time.monotonic() < deadline:
            if any("step 3/" in log.read_text() for log in tmp_path.glob("*/train.log")):
                break
            time.sleep(0.1)
        child.send_signal(number)
        said, _ = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130 and "stopped" in said
    assert "Traceback" not in said
