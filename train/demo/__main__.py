"""python -m train.demo: one small video model with dense attention, VSA and BSA, side by side.

Writes the report, its pictures and TensorBoard logs to out/demo.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from train.demo.run import run
from train.demo.settings import settings


def main(argv: Sequence[str]) -> int:
    """0 when done, 1 after a one-line error, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m train.demo", description=__doc__)
    parser.add_argument("--clips", type=Path, help="a folder of videos in place of the demo's own")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="default: out/demo")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        run(settings(), arguments.out, arguments.clips)
    except KeyboardInterrupt:
        print(f"\nstopped before the report; logs of what was trained lie in {arguments.out}")
        return 130
    except (RuntimeError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
