"""A process of a node: python node_runs.py FAULT, under one torchrun of several.

When the processes of the first start have met FAULT strikes: `fails` ends this one, which torchrun
counts for its node alone; `hangs` waits, as NCCL does with a process that is gone.
"""

import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from train.distributed.meeting import meeting_place

TIMEOUT = 30

if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT), **meeting_place(TIMEOUT))
    restarts = torch.zeros(dist.get_world_size(), dtype=torch.int64)
    restarts[dist.get_rank()] = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    dist.all_reduce(restarts)
    if restarts.any():
        print("met after", sorted(restarts.tolist()), "restarts", flush=True)
        dist.destroy_process_group()
    elif sys.argv[1] == "fails":
        time.sleep(0.5)  # the other takes the sum first
        os._exit(9)
    else:
        time.sleep(60)
