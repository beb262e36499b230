"""A run that takes milliseconds a step, the same in plain PyTorch, and processes to run it in."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from forked import Forked
from torch import Tensor
from torch.distributed.tensor import DTensor

from models.attention import VSA, Slot
from models.video_dit import VideoDiTConfig
from models.wan import debug as wan_debug
from train.configs.video_dit import loader
from train.flow import draw
from train.records.metrics import Metrics
from train.settings import TrainingConfig
from train.titan import LRSchedulersContainer, default_adamw
from train.trainer import Trainer
from train.validation import Validator
from train.weights.checkpoint import Checkpointer

REPOSITORY = Path(__file__).parents[2]
SPARSE = VSA(tile=(1, 2, 2), top_k=3)
WAN = wan_debug(
    in_channels=3,
    out_channels=3,
    video=(2, 32, 32),
    patch=(1, 8, 8),
    dim=32,
    ffn=64,
    text_dim=64,
    attention=SPARSE,
)
"""Takes the clips of a `tiny` run: `model=WAN`."""


def tiny(folder: Path | str, *, attention: Slot = SPARSE, **changes) -> Trainer.Config:
    """2 layers, 32 tokens, moving digits; saves every third step; no validation, no TensorBoard.

    `changes` are fields of the config or of its training section.
    """
    model = VideoDiTConfig(
        channels=3,
        video=(2, 32, 32),
        patch=(1, 8, 8),
        dim=32,
        heads=2,
        layers=2,
        ffn=64,
        attention=attention,
    )
    training = TrainingConfig(steps=6, local_batch_size=4)
    for name in set(changes) & set(TrainingConfig.__dataclass_fields__):
        training = replace(training, **{name: changes.pop(name)})
    config = Trainer.Config(
        model=model,
        dataloader=loader(model, source="digits"),
        dump_folder=str(folder),
        training=training,
        optimizer=default_adamw(lr=3e-3),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=2, decay_type="cosine"),
        validation=Validator.Config(interval=0, clips=8, sample_steps=2),
        checkpoint=Checkpointer.Config(interval=3),
        metrics=Metrics.Config(log_freq=1, enable_tensorboard=False),
    )
    return replace(config, **changes)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """The whole weights and their average, by name."""
    found = {f"model.{k}": v for k, v in trainer.model.state_dict().items()}
    found |= {f"ema.{k}": v for k, v in trainer.ema.average.items()} if trainer.ema else {}
    return {k: (v.full_tensor() if isinstance(v, DTensor) else v).clone() for k, v in found.items()}


Numbers = list[tuple[float, float]]
"""Loss and norm of the gradient at each step: Adam would hide a gradient of the wrong scale."""


def run(config: Trainer.Config, until: int | None = None) -> tuple[Numbers, dict[str, Tensor]]:
    """Build, train, close; what the steps measured, and the weights at the end."""
    trainer = config.build()
    try:
        steps = trainer.train(until).steps
        return [(record.loss, record.grad_norm) for record in steps], weights(trainer)
    finally:
        trainer.close()


def plain_run(config: Trainer.Config, dtype: torch.dtype) -> tuple[Numbers, dict[str, Tensor]]:
    """The same training without any of the trainer: whole batches, torch's AdamW, one process."""
    t = config.training
    size = t.global_batch_size if t.global_batch_size > 0 else t.local_batch_size
    torch.manual_seed(t.seed)
    model = config.model.build().to(dtype)
    groups = config.optimizer.param_groups[0].optimizer_kwargs
    optimizer = torch.optim.AdamW(model.parameters(), **groups)
    lr, warmup = groups["lr"], config.lr_scheduler.warmup_steps
    numbers = []
    batches = iter(config.dataloader.build(local_batch_size=size))
    for step in range(1, t.steps + 1):
        batch = next(batches)
        noise, times = draw(batch["video"], seed=t.seed, step=step, positions=range(size))
        s, x0, noise = (x.to(dtype) for x in (times.view(-1, 1, 1, 1, 1), batch["video"], noise))
        predicted = model((1 - s) * x0 + s * noise, times, batch["context"].to(dtype))
        loss = (predicted - (noise - x0)).square().mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), t.max_norm)
        done = torch.tensor((step - 1 - warmup) / (t.steps - warmup), dtype=torch.float64)
        factor = step / warmup if step <= warmup else 0.5 * (1 + torch.cos(torch.pi * done).item())
        optimizer.param_groups[0]["lr"] = lr * factor
        optimizer.step()
        optimizer.zero_grad()
        numbers.append((loss.item(), norm.item()))
    return numbers, {f"model.{k}": v for k, v in model.state_dict().items()}


def start(*arguments: str, ranks: int = 1) -> list[Any]:
    """`ranks` processes, which find each other as under torchrun, of a script with arguments; or of
    Python with "-m" and what follows it, which takes longer to start."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    here = Path(__file__).parent
    path = [*map(str, (REPOSITORY, here, here.parent)), os.environ.get("PYTHONPATH", "")]
    shared = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    if ranks > 1:
        shared |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    found = [shared | ({"RANK": str(rank)} if ranks > 1 else {}) for rank in range(ranks)]
    if arguments[0] != "-m":
        return [Forked(*arguments, env=env) for env in found]
    pipes: Any = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return [subprocess.Popen([sys.executable, *arguments], env=env, **pipes) for env in found]


def finish(processes: list[Any], expect: int = 0, timeout: float = 120) -> str:
    """Wait for all; their output, when all end with the return code expected."""
    output = []
    try:
        for process in processes:
            output.append(process.communicate(timeout=timeout)[0])
    finally:
        for process in processes:
            process.kill()
    text = "\n".join(output)
    assert [p.returncode for p in processes] == [expect] * len(processes), text
    return text
