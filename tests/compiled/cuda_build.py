"""Where torch is no build for CUDA nothing can be compiled for a GPU: skipped, but in CI."""

import os

import pytest
import torch

needed = pytest.mark.skipif(
    not torch.version.cuda and os.environ.get("CI") != "true",
    reason=f"torch {torch.__version__} is no build for CUDA",
)
