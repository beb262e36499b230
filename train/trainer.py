"""The training loop.

    config -> process group -> data -> model -> parallelize -> optimizer, EMA -> checkpoint -> steps

From Python, with any of the configs in `configs/`:

    trainer = debug_vsa().build()       # goes on where the run directory has a checkpoint
    history = trainer.train()           # history.py: losses, validation losses, seconds, memory
    trainer.close()
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from logging import LogRecord
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.stateful import Stateful

from train import log
from train.data.order.workers import ends_named
from train.distributed.parallelize import (
    check_shared_sequences,
    init_process_group,
    parallel_dims,
    parallelize,
)
from train.distributed.peers import Waiting
from train.distributed.ranks import DataRanks
from train.distributed.signals import StopSignal
from train.feed import Feed, open_split
from train.log import logger
from train.nonfinite import Skipped, backward, step_if_finite
from train.plan.cost import attention_cost, other_cost, training_cost
from train.records.history import History, Unread
from train.records.metrics import peak_memory, reset_peak_memory
from train.records.progress import Progress
from train.records.run_dir import describe
from train.sparsity.annealing import Annealing
from train.sparsity.break_even import agree_on_break_even
from train.titan import (
    Configurable,
    ParallelDims,
    clip_grad_norm_,
)
from train.trainer_config import TrainerConfig
from train.weights.ema import reshard
from train.weights.initial import fill, first_checkpoint, open_folder, outline


class Trainer(Stateful, Configurable):
    """Trains `config.model` by flow matching. All ranks build it and call its methods together.

    Attributes:
        model: `.layers` (ModuleDict of blocks), `.tokens`, forward(x, t, context) -> velocity,
            computed in its weights' dtype.
        step: steps done.
        history: what was measured since it was built.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(TrainerConfig):
        """What a run may be told: the fields of TrainerConfig."""

    def __init__(self, config: Config) -> None:
        timeout = config.parallel.timeout_seconds
        with Waiting(timeout, "the start of the run") as waiting, ends_named():
            self.device = init_process_group(timeout)
            self.rank, self.world = dist.get_rank(), dist.get_world_size()
            dims = parallel_dims(config.parallel)
            check_shared_sequences(config.model, dims.cp)
            config.loss.check(config.model)
            self.ranks = DataRanks.of(dims)
            waiting.limit()
            training = config.training.resolved(self.ranks.size, self.device)
            self.config = replace(config, training=training)
            step = first_checkpoint(self.config)
            with log.held(self.rank) as lines:  # data that cannot be opened leaves no folder
                self._open_data()
            open_folder(self.config, step)
            with self._logging(lines):
                self._build(dims, step)

    def _open_data(self) -> None:
        c = self.config
        self.dataloader = open_split(c, self.ranks, "train")
        levels = getattr(getattr(c.model, "attention", None), "levels", ())
        place: Any = dict(flow=c.flow, ranks=self.ranks, device=self.device, levels=levels)
        self.feed = Feed(self.dataloader, training=c.training, **place)
        self.validator = None
        if c.validation.interval:
            held_out = open_split(c, self.ranks, "validation")
            self.validator = c.validation.build(dataloader=held_out, **place)

    def _build(self, dims: ParallelDims, goes_on_from: int | None) -> None:
        c, training = self.config, self.config.training
        fresh = goes_on_from is None
        model: Any = outline(c)
        self.tokens = int(model.tokens)
        parameters = sum(p.numel() for p in model.parameters())
        self.model = parallelize(
            model,
            dims,
            activation_checkpoint=c.activation_checkpoint,
            compile=c.compile,
            param_dtype=getattr(torch, training.param_dtype),
        )
        fill(self.model, c, self.device, fresh)
        self.optimizers = c.optimizer.build(model_parts=[self.model])
        self.lr_schedulers = c.lr_scheduler.build(
            optimizers=self.optimizers, training_steps=training.steps
        )
        self.ema = c.ema.build(model=self.model) if c.ema.enable else None

        self.annealing = Annealing(self.model, c.sparsity.schedule, training.steps)
        self.step = 0
        self.history = History()
        self._unread = Unread(self.history, self.ranks)
        self.skipped = Skipped(training.max_skipped)
        self.metrics = c.metrics.build(
            parallel_dims=dims, dump_folder=c.dump_folder, config_dict=describe(c)
        )
        self.other_flops = other_cost(c) if self.metrics.shown else None
        self.checkpointer = c.checkpoint.build(
            dataloader=self.dataloader,
            model_parts=[self.model],
            optimizers=self.optimizers,
            lr_schedulers=self.lr_schedulers,
            states={"train_state": self} | ({"ema": self.ema} if self.ema else {}),
            sd_adapter=None,
            base_folder=c.dump_folder,
        )
        asked = c.checkpoint.load_step
        self.checkpointer.load(step=asked if fresh or asked != -1 else goes_on_from)
        if self.step == 0 and self.ema:
            self.ema.restart()  # the weights may have come from another run
        if self.step == 0 and self.annealing.needs_break_even:
            self.annealing.break_even = agree_on_break_even(self.model, c)
        self.annealing.apply(self.step + 1)
        logger.info(
            f"{c.dump_folder}: {parameters:,} parameters, {self.tokens:,} tokens a clip, "
            f"{self.world} x {self.device.type} in {training.param_dtype}, "
            f"step {self.step} of {training.steps}"
        )
        for line in self.annealing.describe():
            logger.info(line)

    def train(self, until: int | None = None) -> History:
        """Train to the end, or to step `until` if that comes first.

        The end is validated and saved. SIGTERM or Ctrl-C ends the step at hand, saves and returns.

        Raises:
            NonFiniteError: loss or gradient non-finite for training.max_skipped steps in a row, as
                was seen when they were read, up to metrics.log_freq - 1 steps later. They changed
                no weights, and what good steps of this start made of them is saved.
            CheckpointNotSavedError: the checkpoint at the end did not fit on the disk.
            LostPeerError: another process is gone or stuck.
            DataWorkerError: a data loading process is gone or stuck.
        """
        c = self.config
        last = c.training.steps if until is None else min(until, c.training.steps)
        reset_peak_memory(self.device)
        with (
            self._logging(),
            StopSignal() as stop,
            Waiting(c.parallel.timeout_seconds, "the first validation") as waiting,
            ends_named(),
            Progress(step=self.step, steps=c.training.steps, show=self.rank == 0) as progress,
            c.profiler.build(global_step=self.step, base_folder=c.dump_folder) as profiler,
        ):
            if self.step == 0 and self.validator and not self.history.validation:
                self.validate()
            self._unread.restart_clock()
            while self.step < last:
                waiting.what = f"step {self.step + 1}"
                self.train_step()
                profiler.step()
                signal = stop.agreed()
                ends = signal is not None or self.step == c.training.steps
                validates = signal is None and self._validation_due()
                saves = ends or self.checkpointer.due(self.step)
                if validates or saves or self.step == last or self.metrics.should_log(self.step):
                    self._report(progress)
                if validates:
                    waiting.what = f"the validation at step {self.step}"
                    self.validate()
                if saves:
                    self.metrics.flush()
                    waiting.what = f"the saving of step {self.step}"
                    save = self.checkpointer.save_now if ends else self.checkpointer.save
                    save(self.step)
                if validates or saves:
                    self._unread.restart_clock()
                if signal is not None:
                    saved = "saved" if c.checkpoint.enable else "not saved (checkpoint.enable)"
                    logger.info(f"{signal}: {saved} at step {self.step}; start again to go on")
                    break
        self.history.peak_memory = max(self.history.peak_memory, peak_memory(self.device))
        return self.history

    def train_step(self) -> None:
        """One optimizer step on the next global batch.

        Weights, moments and average stay as they are if its loss or gradient is non-finite.
        """
        training = self.config.training
        self.step += 1
        self.annealing.apply(self.step)
        loss = torch.zeros((), device=self.device)
        self.optimizers.zero_grad()
        for given in self.feed.step(self.step):
            share = self.config.loss(self.model, *given).sum() / training.global_batch_size
            backward(share)
            loss += share.detach()
        grad_norm = clip_grad_norm_(self.model.parameters(), training.max_norm)
        lr = float(self.lr_schedulers.schedulers[0].get_last_lr()[0])
        self.checkpointer.maybe_wait_for_staging()
        skip = step_if_finite(self.optimizers, grad_norm)
        self.lr_schedulers.step()
        if self.ema:
            self.ema.update(self.step, skip)
        self._unread.add(self.step, lr, loss, grad_norm)

    def validate(self) -> float:
        """The loss on held-out clips; see `averaged`, and `Validator.run` for what is logged."""
        assert self.validator is not None
        with self.averaged() as model:
            loss = self.validator.run(model, self.metrics, self.step)
        self.history.validation.append((self.step, loss))
        logger.info(f"step {self.step}  validation loss {loss:.4f}")
        return loss

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Within it, the model evaluates with its averaged weights (its own without ema.enable)."""
        with self.ema.applied() if self.ema else nullcontext():
            self.model.eval()
            try:
                yield self.model
            finally:
                self.model.train()
                reshard(self.model)

    def close(self) -> None:
        """Release files and workers. The process group stays, for this process's next trainer.

        Raises LostPeerError where a save that was under way waits for a process that is gone.
        """
        self.feed.close()
        self.metrics.close()
        with Waiting(self.config.parallel.timeout_seconds, "the saving that was under way"):
            self.checkpointer.close()

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "break_even": self.annealing.break_even,
            "skipped": self.skipped.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step = state_dict["step"]
        self.annealing.break_even = state_dict["break_even"]
        self.skipped.load_state_dict(state_dict["skipped"])

    def _logging(self, lines: Sequence[LogRecord] = ()) -> AbstractContextManager[None]:
        """Within it, this trainer's lines go to its own train.log, behind `lines`."""
        return log.to_file(Path(self.config.dump_folder, "train.log"), lines, rank=self.rank)

    def _validation_due(self) -> bool:
        c = self.config
        at_end = self.step == c.training.steps
        return self.validator is not None and (at_end or self.step % c.validation.interval == 0)

    def _report(self, progress: Progress) -> None:
        records = self._unread.read()
        self.skipped.see(records)
        now = records[-1]
        tokens = self.config.training.global_batch_size * self.tokens / now.seconds
        cost = attention_cost(self.model, self.annealing.tiles_at(self.step))
        self.metrics.scalars(
            self.step,
            train__loss=now.loss,
            train__lr=now.lr,
            train__grad_norm=now.grad_norm,
            train__skipped=self.skipped.total,
            speed__tokens_per_second=tokens,
            speed__step_seconds=now.seconds,
            train__clips_replaced=self.feed.clips_replaced().item(),
            speed__data_seconds=self.feed.seconds_waited() / len(records),
            memory__peak_gib=peak_memory(self.device) / 2**30,
            **cost,
            **training_cost(self.other_flops, cost),
        )
        progress.report(now, tokens)
        if self.skipped.too_many:
            raise self.skipped.error(self._save_what_was_good())

    def _save_what_was_good(self) -> str:
        """Save, if this start has done a step that was not skipped; in words, what there is."""
        if not self.history.steps:
            return "nothing was saved, since no step of this start was any better"
        last = self.history.steps[-1].step
        if not self.config.checkpoint.enable:
            return f"not saved (checkpoint.enable), and step {last} was the last good one"
        self.checkpointer.save_now(self.step)
        return f"saved at step {self.step} with the weights of step {last}, the last good one"
