"""python -m train.data.doom --out DIR [--clips N]

Films clips in Freedoom's maps, as lossless videos with captions: DIR/train, and DIR/validation from
maps that are in no training clip. `--dataloader.path DIR` trains on them. A run that was stopped
goes on with the clips that are missing, and a larger N adds some: a clip's number says what it is.
"""

import itertools
import os
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import tyro

from train import log
from train.data.caches.folder import claim_folder
from train.data.doom.film import Reel, film
from train.data.doom.walks import FPS, HELD_OUT, MAPS
from train.data.progress import WorkProgress

TAKES = 8  # of a walk
MANIFEST = "_doom.json"


@dataclass(kw_only=True, frozen=True)
class Options:
    out: Path
    """Folder for the clips, about 0.46 MB each at 33 frames of 160x120."""
    clips: int = 4096
    """For training, in turn from each of 60 maps."""
    validation_clips: int = 512
    """From each of 8 other maps."""
    num_frames: int = 33
    """17.5 of them are a second."""
    size: Literal["160x120", "320x240", "640x480"] = "160x120"
    processes: int = 0
    """0: one for each core."""


def plan(options: Options) -> list[Reel]:
    """What is missing, walk by walk.

    Clip n of a split is of map n % maps, and there the (n // maps)-th take; walks have TAKES.
    """
    reels: dict[tuple[str, str, int], list[Path]] = {}
    training = [name for name in MAPS if name not in HELD_OUT]
    for split, maps, clips in (
        ("train", training, options.clips),
        ("validation", HELD_OUT, options.validation_clips),
    ):
        for n in range(clips):
            name, take = maps[n % len(maps)], n // len(maps)
            file = options.out / split / f"{n:06d}-{name.replace('/', '-')}.mkv"
            reels.setdefault((split, name, take // TAKES), []).append(file)
    height = int(options.size.split("x")[1])
    return [
        Reel(name, walk, height, options.num_frames, tuple(files))
        for (_, name, walk), files in reels.items()
        if not all(file.exists() for file in files)
    ]


def record(options: Options) -> None:
    """Film what is missing. Raises ValueError or OSError in one line."""
    if min(options.clips, options.validation_clips, options.processes) < 0 or (
        options.num_frames < 2 or not options.clips + options.validation_clips
    ):
        raise ValueError(
            f"clips={options.clips}, validation_clips={options.validation_clips} and processes="
            f"{options.processes} must not be negative, num_frames={options.num_frames} at least "
            "2, and some clips wanted"
        )
    try:
        import vizdoom
    except ImportError as e:
        raise ValueError("filming takes ViZDoom: pip install 'flexsparse[doom]'") from e
    holds = {"num_frames": options.num_frames, "size": options.size, "fps": float(FPS)}
    claim_folder(options.out, holds | {"vizdoom": vizdoom.__version__}, MANIFEST, "*.mkv")
    reels = plan(options)
    total, done = sum(not file.exists() for reel in reels for file in reel.files), 0
    workers = min(options.processes or os.cpu_count() or 1, max(1, len(reels)))
    with (
        WorkProgress("filming clips", total) as progress,
        ProcessPoolExecutor(workers, get_context("spawn")) as pool,
    ):
        waiting, running = iter(reels), set()
        try:
            while True:
                some = itertools.islice(waiting, 2 * workers - len(running))
                running |= {pool.submit(film, reel) for reel in some}
                if not running:
                    break
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    done += future.result()
                    progress.show(done, f"{done} of {total}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    log.logger.info("%s: %d clips filmed, the others were there", options.out, done)


def main(argv: Sequence[str]) -> int:
    """0 when all is filmed, 1 for an error, 130 for Ctrl-C."""
    log.to_console()
    options = tyro.cli(Options, prog="python -m train.data.doom", args=argv)
    try:
        record(options)
    except (ValueError, OSError, RuntimeError) as error:  # the last: a process that was killed
        log.logger.error("error: %s", error)
        return 1
    except KeyboardInterrupt:
        log.logger.error("interrupted: clips that are complete stay; start again to go on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
