"""Decoded videos on disk: raw uint8 frames, and an index that vouches for them.

An entry is two files, named by a hash of the video (path, size, time of change) and of the decode
options: `<key>.frames`, the frames one after another, and `<key>.json`, written after them. Both
are written under another name and renamed, so that a reader sees a whole entry or none, whatever
interrupted the writer. Windows are slices of an entry, so overlapping ones share their frames.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from train.data.sources.decode import DECODING, UnreadableVideo, decode_changes


@dataclass(frozen=True)
class CachedVideo:
    """Frames on disk: `num_frames` of [height, width, 3] uint8, and the changes between them."""

    path: Path
    num_frames: int
    height: int
    width: int
    changes: tuple[float, ...]

    def read(self, start: int, count: int) -> np.ndarray:
        """Frames start .. start + count: uint8 [count, height, width, 3].

        Raises OSError, and ValueError where the file has become shorter.
        """
        size = self.height * self.width * 3
        flat = np.fromfile(self.path, np.uint8, count * size, offset=start * size)
        if flat.size != count * size:
            raise ValueError("cut short: start again to decode its video once more")
        return flat.reshape(count, self.height, self.width, 3)


def default_cache_dir() -> Path:
    return Path.home() / ".cache" / "flexsparse"


def cached_video(
    video: Path,
    cache_dir: Path,
    *,
    height: int,
    width: int,
    fps: float,
    on_frame: Callable[[int], None] = lambda n: None,
) -> CachedVideo:
    """The video's frames at this size and rate, decoded now if no entry has them.

    Processes that ask at the same time decode once: the others wait. `on_frame` hears the number of
    frames decoded so far. Raises UnreadableVideo for whatever is wrong with the video, and OSError
    for what is wrong with the cache: in one line when the disk is full.
    """
    identity = (DECODING, *file_identity(video), height, width, fps)
    entry = cache_dir / hashlib.sha256(repr(identity).encode()).hexdigest()[:32]
    frames_file, index_file = entry.with_suffix(".frames"), entry.with_suffix(".json")
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(entry.with_suffix(".lock")):
            index = _read_index(index_file, frames_file)
            if index is None:
                with _replacing(frames_file) as out:
                    frames = decode_changes(video, height, width, fps)
                    index = {"video": str(video), **_write_frames(frames, out, on_frame)}
                with _replacing(index_file) as out:
                    out.write(json.dumps(index).encode())
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            e.errno,
            f"no space left for the decoded frames of {video.name} in {cache_dir}: "
            "free some, or set cache_dir to a folder on another disk",
        ) from e
    return CachedVideo(frames_file, index["num_frames"], height, width, tuple(index["changes"]))


def file_identity(video: Path) -> tuple[str, int, int]:
    """Path, size and time of change; UnreadableVideo for what is no regular file."""
    try:
        found = video.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UnreadableVideo("it is no regular file")
        return str(video.resolve()), found.st_size, found.st_mtime_ns
    except FileNotFoundError as e:
        raise UnreadableVideo("there is no such file") from e
    except (OSError, ValueError) as e:  # a loop of links, a name too long or with a null in it, ...
        raise UnreadableVideo(getattr(e, "strerror", None) or str(e)) from e


def _write_frames(
    frames: Iterator[tuple[np.ndarray, float]], out: BinaryIO, on_frame: Callable
) -> dict:
    changes, size = [], 0
    for image, change in frames:
        out.write(image.data)
        changes.append(round(change, 3))
        size += image.nbytes
        on_frame(len(changes))
    return {"num_frames": len(changes), "size": size, "changes": changes[1:]}


def _read_index(index_file: Path, frames_file: Path) -> dict | None:
    try:
        index = json.loads(index_file.read_text())
        return index if frames_file.stat().st_size == index["size"] else None
    except (FileNotFoundError, ValueError, KeyError):
        return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "wb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends well, and vanishes if it fails."""
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with open(unfinished, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
