"""Hypothesis without deadlines (compilation is slow); in CI the draws are the same every time.

Without a GPU, Triton kernels run in Triton's interpreter, on the CPU.
"""

import os

import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

settings.register_profile("flexsparse", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("flexsparse")
