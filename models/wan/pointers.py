"""Files of a repository that was cloned without Git LFS: a few lines in place of the content."""

from pathlib import Path

POINTER = b"version https://git-lfs.github.com/spec/"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that does not fit: one line that says why."""


def check_content(file: Path) -> None:
    """Raise CheckpointError for a pointer of Git LFS, OSError for a file that cannot be read."""
    with file.open("rb") as opened:
        if opened.read(len(POINTER)) == POINTER:
            raise CheckpointError(
                f"{file} is a pointer of Git LFS in place of the content: fetch it, git lfs pull"
            )
