"""What the sources of clips give, counted for docs/data.md."""

import numpy as np
import pytest

from benchmarks import clips
from benchmarks.record import read
from train.data.doom.film import write_lossless


def test_clips_are_filmed_and_counted_for_the_page(tmp_path, monkeypatch, capsys):
    still, moving = np.zeros((3, 120, 160, 3), np.uint8), np.zeros((2, 120, 160, 3), np.uint8)
    moving[1] = 40

    def filmed(options):
        (options.out / "train").mkdir()
        for n, frames in enumerate((still, moving)):
            write_lossless(options.out / "train" / f"{n}.mkv", frames)

    monkeypatch.setenv("HOME", str(tmp_path))  # decoded frames are kept there
    monkeypatch.setattr(clips, "record", filmed)
    monkeypatch.setattr(clips, "fetch_clips", lambda recipe: scene_folder(tmp_path / "videos"))
    assert clips.main(["--films", "2", "--results", str(tmp_path)]) == 0
    films, footage = read("clips", tmp_path)
    assert (films["clips"], films["cut"], films["still"]) == (2, 1, round(2 / 3, 5))
    assert films["motion"] == 20 and films["least_motion"] == 0
    assert (footage["videos"], footage["too_short"], footage["train"]) == (2, 1, 5)
    assert footage["validation"] == 1
    assert "| films | clips filmed a second" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        clips.main(["--films", "0"])


def scene_folder(folder):
    """A video of 129 frames of 15 a second, of which 32 are held out, and one of 7."""
    folder.mkdir()
    ramp = np.broadcast_to(np.arange(150, dtype=np.uint8)[:, None, None, None], (150, 120, 160, 3))
    write_lossless(folder / "long.mkv", np.ascontiguousarray(ramp))
    write_lossless(folder / "short.mkv", np.ascontiguousarray(ramp[:8]))
    return folder
