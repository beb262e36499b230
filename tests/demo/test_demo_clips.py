import numpy as np
import torch
from PIL import Image

from train.demo.clips import side_by_side, to_pixels, write_gif


def test_pixels_span_the_range():
    clip = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0]).expand(3, 2, 4, 5)
    pixels = to_pixels(clip)
    assert pixels.shape == (2, 4, 5, 3) and pixels.dtype == np.uint8
    assert pixels[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_every_clip_stands_in_the_table_enlarged():
    rng = np.random.default_rng(0)
    rows = [[rng.integers(0, 256, (3, 4, 6, 3)).astype(np.uint8) for _ in range(3)] for _ in "ab"]
    table = side_by_side(rows, ["a", "b", "c"], ["one", "two"], scale=2)
    assert len(table) == 3
    for row in rows:
        for clip in row:
            large = clip.repeat(2, 1).repeat(2, 2)
            windows = np.lib.stride_tricks.sliding_window_view(table, large.shape)[0, :, :, 0]
            assert (windows == large).all((-4, -3, -2, -1)).sum() == 1


def test_a_gif_plays_every_frame_for_ever(tmp_path):
    frames = np.stack([np.full((20, 30, 3), 40 * i, dtype=np.uint8) for i in range(5)])
    write_gif(tmp_path / "g.gif", frames, fps=10)
    with Image.open(tmp_path / "g.gif") as gif:
        assert (
            getattr(gif, "n_frames", 1) == 5
            and gif.info["loop"] == 0
            and gif.info["duration"] == 100
        )
        for i in range(5):
            gif.seek(i)
            assert np.array_equal(np.asarray(gif.convert("RGB")), frames[i])
