"""How the commands of this folder end: with a status, and in one line where it is not 0."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch


def status_of(command: Callable[[], object]) -> int:
    """Run it: 0 when it is done, 2 for an error, 130 for Ctrl-C.

    An error is a ValueError, an OSError or memory that is short; others are ours, and raised.
    """
    try:
        command()
    except KeyboardInterrupt:
        print("interrupted: files that are whole stay", file=sys.stderr)
        return 130
    except (ValueError, OSError) as e:
        said = str(e)
    except (RuntimeError, MemoryError) as e:
        on_cpu = isinstance(e, MemoryError) or "allocate memory" in str(e)
        if not on_cpu and not isinstance(e, torch.OutOfMemoryError):
            raise
        why = str(e).splitlines()[0] if str(e) else "out of memory"
        said = f"{why} (a smaller --size takes less, as does a --dtype of fewer bits)"
    else:
        return 0
    print(f"error: {said}", file=sys.stderr)
    return 2
