"""python -m train --module models.video_dit --config debug_vsa [--training.steps 10 ...]

On several processes: torchrun --nproc-per-node 8 -m train --module ... --config ...

With --plan it says what the run would take here, or with --plan-gpus N on N GPUs, and ends.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import torch.distributed as dist

from train import log
from train.data.order.damaged import DamagedDataError
from train.data.order.workers import DataWorkerError
from train.distributed.peers import LostPeerError
from train.nonfinite import NonFiniteError
from train.plan import plan
from train.plan.text import lines
from train.registry import load_config
from train.titan import device_type
from train.weights.checkpoint import CheckpointNotSavedError

FAULTS = (
    NonFiniteError,
    CheckpointNotSavedError,
    LostPeerError,
    DataWorkerError,
    DamagedDataError,
)


def main(argv: Sequence[str]) -> int:
    """0 when the run ended, or saved as it was told to stop; 1 for an error, 130 for two Ctrl-C."""
    log.to_console()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--plan-gpus", type=int, metavar="N")
    asked, options = parser.parse_known_args(argv)
    try:
        config = load_config(options)
        if asked.plan or asked.plan_gpus is not None:
            here = int(os.environ.get("WORLD_SIZE", "1")), device_type
            told = plan(config, *here if asked.plan_gpus is None else (asked.plan_gpus, "cuda"))
            print("\n".join(lines(told)))
            return 0
        trainer = config.build()
    except (ValueError, OSError, *FAULTS) as error:
        log.logger.error("error: %s", error)
        return 1
    except KeyboardInterrupt:
        log.logger.error("interrupted before the first step: nothing is lost")
        return 130
    code = 1
    try:
        trainer.train()
        code = 0
    except FAULTS as error:
        log.logger.error("error: %s", error)
    except KeyboardInterrupt:
        log.logger.error("interrupted at step %d, without saving", trainer.step)
        code = 130
    finally:
        try:
            trainer.close()
        except FAULTS as error:
            log.logger.error("error: %s", error)
            code = code or 1
    if code == 0:
        dist.destroy_process_group()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
