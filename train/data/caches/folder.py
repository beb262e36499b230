"""A folder that runs fill file by file: any may be stopped, and several may work at a time.

`_latents.json` says what the files hold, so that only a run that would write the same goes on.
(Arrow passes over what begins with _ when it reads a folder of parquet files as one table.)
"""

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

MANIFEST = "_latents.json"


def claim_folder(
    folder: Path, holds: dict[str, Any], name: str = MANIFEST, files: str = "*.parquet"
) -> None:
    """Make the folder, or go on with one whose manifest says the same; `holds` is JSON values.

    Args:
        name: of the manifest.
        files: a pattern for what runs put there.

    Raises ValueError for a folder of something else, OSError for one that takes no file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):  # fails now rather than after the first hour
        pass
    manifest = folder / name
    if not manifest.exists():
        if next(folder.rglob(files), None):
            raise ValueError(
                f"{folder} holds {files} but no {name}: give a folder of its own as --out"
            )
        draft = folder / f"{name}.{os.getpid()}"
        draft.write_text(json.dumps(holds, indent=2) + "\n")
        draft.replace(manifest)
    there = json.loads(manifest.read_text())
    differ = [
        f"{key} is {there.get(key)} there and {holds.get(key)} here"
        for key in {**holds, **there}
        if there.get(key) != holds.get(key)
    ]
    if differ:
        raise ValueError(
            f"{folder} holds the files of another run ({'; '.join(differ)}): give another --out"
        )


@contextlib.contextmanager
def claimed(file: Path) -> Iterator[BinaryIO | None]:
    """What takes the file's place when the block ends well; None if it is there or being written.

    The lock is on the unfinished file itself and dies with its process, and whoever comes next
    begins it anew.
    """
    unfinished = file.with_name(f"_{file.name}.tmp")
    with open(unfinished, "ab") as out:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        if file.exists():
            unfinished.unlink(missing_ok=True)
            yield None
            return
        out.truncate(0)
        yield out
        out.flush()
        os.fsync(out.fileno())
        unfinished.replace(file)
