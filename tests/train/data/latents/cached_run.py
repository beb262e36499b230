"""Videos whose frames are known, and what a run of the command leaves."""

import numpy as np

FRAMES, HEIGHT, WIDTH = 9, 32, 48
LATENT = {"channels": 2, "num_frames": 3, "height": 4, "width": 6}


def scene(number, length):
    """A still of noise that grows brighter by one a frame: no two frames or scenes are equal."""
    still = np.random.default_rng(number).integers(0, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return [still + np.uint8(i) for i in range(length)]


def names(videos):
    return sorted(p.relative_to(videos).with_suffix("").as_posix() for p in videos.rglob("*.mov"))


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def said(caplog):
    return [r.getMessage() for r in caplog.records]
