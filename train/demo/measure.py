"""Seconds and bytes, of dense and sparse attention side by side.

A busy machine slows whatever runs at the moment, so what is compared is timed in turns, and a
figure is a median.
"""

import contextlib
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from train.demo.model import PixelDiT
from train.sparsity.attention_stats import watched_slots
from train.trainer import Trainer

TRIAL_STEPS = 4


@dataclass(frozen=True)
class Trial:
    """What a few training steps cost: bytes of memory at its largest, seconds of the fastest."""

    peak_memory: int
    step_seconds: float


def try_steps(config: Trainer.Config) -> Trial:
    """Take TRIAL_STEPS training steps in a process of their own.

    Memory on a GPU is what was allocated; on a CPU it is how far the process grew from before the
    model was built: weights, gradients, optimizer and activations, but not Python and torch.

    Raises RuntimeError with the process's error, should it have one.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as scratch:
        config = replace(
            config,
            dump_folder=scratch,
            training=replace(config.training, steps=TRIAL_STEPS),
            validation=replace(config.validation, interval=0),
        )
        child = context.Process(target=_child, args=(config, theirs), daemon=True)
        with _ignoring_ctrl_c():  # the child would inherit the key, and end with a traceback
            child.start()
        theirs.close()
        try:
            answer = ours.recv()
            child.join(30)
        except EOFError:
            answer = "its process ended early (out of memory?)"
        finally:
            child.kill()
            child.join()
    if isinstance(answer, str):
        raise RuntimeError(f"the trial training steps failed: {answer}")
    return answer


@contextlib.contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _child(config: Trainer.Config, answer: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # the trainer's progress bar
    try:
        before = _resident()
        trainer = config.build()
        history = trainer.train()
        trainer.close()
        dist.destroy_process_group()
        peak = history.peak_memory - (before if trainer.device.type == "cpu" else 0)
        answer.send(Trial(peak, min(step.seconds for step in history.steps)))
    except Exception as e:
        answer.send(f"{type(e).__name__}: {e}")


def _resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def plain_copy(trainer: Trainer, *, cast: bool = False) -> PixelDiT:
    """The trainer's model with its weights as they are, whole, on its device, outside FSDP.

    With `cast`, in the dtype that training computes in rather than in the weights' fp32.
    """
    model = trainer.config.model.build().to(trainer.device)
    state = trainer.model.state_dict()
    whole = {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in state.items()}
    model.load_state_dict(whole)
    if cast:
        model.to(getattr(torch, trainer.config.training.param_dtype))
    return model.eval()


@dataclass(frozen=True)
class SlotCall:
    """A layer's attention slot and what it was called with: x, q, k, v and the tiling."""

    slot: nn.Module
    inputs: tuple


@torch.no_grad()
def slot_calls(model: PixelDiT, x: Tensor, t: Tensor, context: Tensor) -> list[SlotCall]:
    """The calls of every layer's slot in one forward pass."""
    calls: list[SlotCall] = []

    def keep(slot: nn.Module, inputs: tuple) -> None:
        calls.append(SlotCall(slot, inputs))

    with watched_slots(model, keep):
        model(x, t, context)
    return calls


def attention_seconds(runs: Mapping[str, list[SlotCall]], repeats: int) -> dict[str, float]:
    """Seconds of the attention of all layers, forward and backward: medians of `repeats`."""
    times = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, calls in runs.items():
            seconds = sum(_forward_backward(call) for call in calls)
            if repeat:  # the first one warms up
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def _forward_backward(call: SlotCall) -> float:
    *tensors, tiling = call.inputs
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    gradient = torch.randn_like(leaves[1])
    _finish(gradient.device)
    begin = time.perf_counter()
    call.slot(*leaves, tiling).backward(gradient)
    _finish(gradient.device)
    return time.perf_counter() - begin


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
