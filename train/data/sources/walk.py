"""The files below a folder, those behind links to other folders among them."""

import logging
import os
from collections import deque
from collections.abc import Collection
from pathlib import Path

logger = logging.getLogger(__name__)


def files_below(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The files with one of these suffixes (lower case, for either case) at any depth, in order.

    Each file is there once, however many paths lead to it: by the path without a link, else by the
    first one. The log says what is left out: further links to a file, links to a folder that this
    one is in, folders that cannot be read, and hidden ones, whose name begins with a dot. A link
    that leads nowhere is there, so that who opens it can say so.
    """
    top, seen = Path(os.path.realpath(folder)), set()
    found: dict[str, Path] = {}
    links: list[Path] = []
    folders = deque([folder])  # this one, then those behind links
    while folders:
        for at, below, names in os.walk(folders.popleft(), onerror=_unreadable):
            if (real := os.path.realpath(at)) in seen:
                below.clear()
                continue
            seen.add(real)
            hidden = sorted(name for name in below if name.startswith("."))
            if hidden:
                logger.info("left out hidden folders in %s: %s", at, ", ".join(hidden))
            below[:] = sorted({*below}.difference(hidden))
            for link in filter(os.path.islink, (Path(at, name) for name in below)):
                if top.is_relative_to(os.path.realpath(link)):
                    logger.warning("left out %s: it is a link to a folder that it is in", link)
                else:
                    folders.append(link)
            for file in (Path(at, name) for name in names):
                if file.suffix.lower() in suffixes:
                    if os.path.islink(file):
                        links.append(file)
                    else:
                        found[os.path.join(real, file.name)] = file
    for link in sorted(links):
        file = found.setdefault(os.path.realpath(link), link)
        if file is not link:
            logger.warning("left out %s: it is a link to %s, which is there already", link, file)
    return sorted(found.values())


def _unreadable(error: OSError) -> None:
    logger.warning("left out folder %s: %s", error.filename, error.strerror)
