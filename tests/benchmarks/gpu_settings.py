"""What the tests of the GPU benchmark share: a small ragged video, on the CPU."""

import torch

from benchmarks.gpu.cases import Setting

CPU = torch.device("cpu")
SMALL = Setting("small", (5, 9, 8), (4, 4, 4), 2, 16)
