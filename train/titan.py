"""What the trainer takes from torchtitan 0.3.0: the one module here that imports it.

Only the components are imported, never `torchtitan.trainer` or `torchtitan.models`: those want
Triton, and do not import on torch 2.11. Import these names from here, not from torchtitan: it asks
for the device while it is imported, answers "cuda" on a machine without one, and copies that answer
into every module, so it must be told first.
"""

# ruff: noqa: E402
import logging
import os
import types

import torch
import torchtitan.tools.utils as _utils

MACHINE_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

# The functions of torch.cuda that the components call, answered for a CPU.
_CPU = types.SimpleNamespace(
    current_device=lambda: 0,
    get_device_name=lambda device=None: "CPU",
    get_device_properties=lambda device=None: types.SimpleNamespace(total_memory=MACHINE_MEMORY),
    memory_stats=lambda device=None: {},
    reset_peak_memory_stats=lambda: None,
    empty_cache=lambda: None,
)

# Warnings that torchtitan gives about its own defaults.
_NOISE = (
    "Peak flops undefined",
    "Error running lspci",
    "initial_load_model_only=True has no effect",
)

if not torch.accelerator.is_available():
    _utils.device_type, _utils.device_module = "cpu", _CPU
logging.getLogger().addFilter(lambda record: not record.getMessage().startswith(_NOISE))

from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.checkpointer.utils import canonical_fqn
from torchtitan.components.metrics import (
    BaseLogger,
    LoggerContainer,
    MetricsProcessor,
    TensorBoardLogger,
)
from torchtitan.components.optimizer import (
    LRSchedulersContainer,
    OptimizersContainer,
    default_adamw,
)
from torchtitan.config import Configurable
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.activation_checkpoint import ActivationCheckpointing, SelectiveAC
from torchtitan.distributed.utils import clip_grad_norm_
from torchtitan.tools.filesystem import is_remote
from torchtitan.tools.profiler import Profiler

device_type: str = _utils.device_type

__all__ = [
    "ActivationCheckpointing",
    "BaseLogger",
    "CheckpointManager",
    "Configurable",
    "LRSchedulersContainer",
    "LoggerContainer",
    "MetricsProcessor",
    "OptimizersContainer",
    "ParallelDims",
    "Profiler",
    "SelectiveAC",
    "TensorBoardLogger",
    "canonical_fqn",
    "clip_grad_norm_",
    "default_adamw",
    "device_type",
    "is_remote",
]
