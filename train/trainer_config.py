"""What a run is: the fields that `python -m train` takes, `--training.steps 100` and all others."""

from dataclasses import dataclass, field
from typing import Any

from train.distributed.activation_checkpoint import Mode
from train.distributed.parallelize import ParallelConfig
from train.flow import FlowConfig
from train.losses import FlowLoss, Loss
from train.records.metrics import Metrics
from train.settings import TrainingConfig
from train.sparsity.annealing import SparsityConfig
from train.titan import (
    Configurable,
    LRSchedulersContainer,
    OptimizersContainer,
    Profiler,
    default_adamw,
)
from train.validation import Validator
from train.weights.checkpoint import Checkpointer
from train.weights.ema import EMA
from train.weights.initial import InitialConfig
from train.weights.lora import LoRAConfig


@dataclass(kw_only=True, slots=True)
class TrainerConfig(Configurable.Config):
    """All of a run; each part is the config of what it builds, attention a field of the model's."""

    model: Any
    """A dataclass with `.build()`, which must run under `torch.device("meta")`, too."""
    dataloader: Any
    """A dataclass with `.build(dp_world_size=, dp_rank=, local_batch_size=,
    global_batch_size=, split=)`."""
    dump_folder: str = "out/run"
    """Directory of the run; one that holds checkpoints is resumed."""
    initial: InitialConfig = field(default_factory=InitialConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    loss: Loss = field(default_factory=FlowLoss)
    """What training minimises; validation is by flow matching's own."""
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    optimizer: OptimizersContainer.Config = field(default_factory=default_adamw)
    lr_scheduler: LRSchedulersContainer.Config = field(
        default_factory=lambda: LRSchedulersContainer.Config(decay_type="cosine")
    )
    ema: EMA.Config = field(default_factory=EMA.Config)
    validation: Validator.Config = field(default_factory=Validator.Config)
    checkpoint: Checkpointer.Config = field(default_factory=Checkpointer.Config)
    activation_checkpoint: Mode = "none"
    compile: bool = False
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    metrics: Metrics.Config = field(default_factory=Metrics.Config)
    profiler: Profiler.Config = field(default_factory=Profiler.Config)
