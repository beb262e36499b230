"""The command ``python -m flexsparse.selfcheck``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from flexsparse import selfcheck


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 if all is right, 1 if something is wrong, 2 if the device is not there."""
    parser = argparse.ArgumentParser(
        "python -m flexsparse.selfcheck", description=selfcheck.__doc__
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cuda", "cpu"], default=default)
    parser.add_argument("--full", action="store_true", help="every combination: long")
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: torch sees no GPU here; leave it out for the CPU", file=sys.stderr)
        return 2
    results = selfcheck.run(chosen.device, chosen.full, lambda line: print(line, flush=True))
    return int(any(r.ok is False for r in results))


if __name__ == "__main__":
    sys.exit(main())
