"""python killed_run.py FOLDER: go on, and die by SIGKILL while step 6 is being saved.

All data is written by then, and the file that makes it a checkpoint is not.
"""

import os
import signal
import sys

from torch.distributed.checkpoint import FileSystemWriter
from trainer_runs import tiny

from train.weights.checkpoint import Checkpointer

if __name__ == "__main__":
    FileSystemWriter.finish = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    checkpoint = Checkpointer.Config(interval=3)
    tiny(sys.argv[1], checkpoint=checkpoint).build().train()
