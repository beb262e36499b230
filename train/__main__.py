"""python -m train --module models.video_dit --config debug_vsa [--training.steps 10 ...]

On several processes: torchrun --nproc-per-node 8 -m train --module ... --config ...
"""

import sys
from collections.abc import Sequence

import torch.distributed as dist

from train import log
from train.checkpoint import CheckpointNotSavedError
from train.history import NonFiniteError
from train.registry import load_config


def main(argv: Sequence[str]) -> int:
    """0 when the run ended, or saved as it was told to stop; 1 for an error, 130 for two Ctrl-C."""
    log.to_console()
    try:
        trainer = load_config(argv).build()
    except (ValueError, OSError) as error:
        log.logger.error("error: %s", error)
        return 1
    try:
        trainer.train()
    except (NonFiniteError, CheckpointNotSavedError) as error:
        log.logger.error("error: %s", error)
        return 1
    except KeyboardInterrupt:
        log.logger.error("interrupted at step %d, without saving", trainer.step)
        return 130
    finally:
        trainer.close()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
