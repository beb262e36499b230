"""Lines for people: on the terminal (where they make way for the progress bar) and in train.log."""

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from logging.handlers import BufferingHandler
from pathlib import Path

from tqdm import tqdm

logger = logging.getLogger("train")


class File(logging.FileHandler):
    """A file that may run out of disk, of which one line elsewhere is enough."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class Console(logging.Handler):
    """Standard output, through tqdm, which lifts its bar out of the way."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(record, "on_bar", False)  # what the bar shows anyway

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def to_console() -> None:
    """Show this package's log. Of all ranks but the first, errors alone pass in a run."""
    if not any(isinstance(handler, Console) for handler in logger.handlers):
        console = Console(logging.INFO)
        console.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
        logger.addHandler(console)
    logger.setLevel(logging.INFO)


@contextmanager
def held(rank: int = 0) -> Iterator[list[logging.LogRecord]]:
    """Within it, keep every line of the first rank too, for a file that shall not be there yet."""
    if rank > 0:
        logger.setLevel(logging.ERROR)
        yield []
        return
    lines = BufferingHandler(sys.maxsize)
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    try:
        yield lines.buffer
    finally:
        logger.removeHandler(lines)


@contextmanager
def to_file(
    path: Path, lines: Iterable[logging.LogRecord] = (), *, rank: int = 0
) -> Iterator[None]:
    """Append these lines to a file, and within it every line of the first rank."""
    if rank > 0:
        logger.setLevel(logging.ERROR)
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = File(path)
    file.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
    for line in lines:
        file.handle(line)
    logger.addHandler(file)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(file)
        file.close()


def time_text(seconds: float) -> str:
    """Seconds as 5 s, 3 min 20 s or 2 h 5 min."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60} s"
    return f"{s // 3600} h {s % 3600 // 60} min"
