"""Checkpoints: torchtitan's manager (torch's DCP), made safe against kills and full disks.

A checkpoint is the folder `step-N`, and it counts once it has the file `.metadata`, which DCP
writes last and moves into place in one step. What is added here keeps that sentence true:

- no whole checkpoint is ever written again: DCP would write new data under the old `.metadata`,
  and torchtitan drops the lowest steps, not the oldest; who wants to go back to an earlier step
  moves the later ones away first;
- a folder that a failed or killed save left behind is removed, so that it takes no space and is not
  counted among the checkpoints that are kept.
"""

import errno
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader

from train.log import logger
from train.titan import CheckpointManager, canonical_fqn, is_remote

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CheckpointNotSavedError(OSError):
    """The state at the end of training could not be written."""


def complete_steps(folder: str | Path) -> list[int]:
    """Steps of the checkpoints in `folder` that can be loaded, in order."""
    return sorted(int(path.name[5:]) for path in _folders(folder) if _complete(path))


def check_initial_load_path(path: str) -> None:
    """Raise ValueError unless there is a whole checkpoint, with those that there are."""
    if is_remote(path) or _complete(Path(path)):
        return
    for folder in (Path(path), Path(path, "checkpoint"), Path(path).parent):
        if steps := complete_steps(folder):
            there = ", ".join(f"{folder}/step-{step}" for step in steps[-3:])
            raise ValueError(
                f"checkpoint.initial_load_path {path} is no whole checkpoint: give {there}"
            )
    raise ValueError(
        f"checkpoint.initial_load_path {path} is no whole checkpoint: give RUN/checkpoint/step-N, "
        f"a folder with a file .metadata"
    )


def check_load_step(folder: str | Path, step: int) -> None:
    """Raise ValueError if `folder` holds checkpoints of later steps than the one to go back to."""
    later = [other for other in complete_steps(folder) if 0 <= step < other]
    if later:
        names = ", ".join(f"step-{other}" for other in later)
        raise ValueError(
            f"checkpoint.load_step is {step}, and {folder} also holds {names}, which the new run "
            "would mix with its own: move them away, or start in another --dump-folder with "
            f"--checkpoint.initial-load-path {folder}/step-{step}"
        )


class Checkpointer(CheckpointManager):
    """`save(step)` writes every `interval` steps; `save_now(step)` whatever the step.

    When storage fails (a full disk, a quota, a file size limit), `save` says so in one line,
    removes what it wrote, and training goes on: the next save may fare better. `save_now`, on which
    the end of a run relies, raises CheckpointNotSavedError instead. Checkpoints that were complete
    stay.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):
        enable: bool = True
        interval: int = 500
        keep_latest_k: int = 3
        last_save_model_only: bool = False
        """False: a finished run can be resumed with more --training.steps."""

        def __post_init__(self) -> None:
            path = self.initial_load_path
            if path and path.strip() and not is_remote(path):
                self.initial_load_path = os.path.abspath(os.path.expanduser(path.strip()))
            CheckpointManager.Config.__post_init__(self)  # super() knows no class with slots

    _now = False
    _target = Path()

    def dcp_load(
        self, state_dict: dict[str, Any], checkpoint_id: str, from_hf: bool, from_quantized: bool
    ) -> None:
        """Load into `state_dict`. Layers that adapt a dense model (`adapt`) keep what it lacks."""
        if not from_hf:
            there = FileSystemReader(checkpoint_id).read_metadata().state_dict_metadata
            modules = self.states["model"].model[0].named_modules()
            adapting = tuple(
                canonical_fqn(f"{name}.") for name, m in modules if getattr(m, "adapt", False)
            )
            fresh = [k for k in state_dict if k not in there and k.startswith(adapting)]
            for key in fresh:
                del state_dict[key]
            if fresh:
                logger.info(
                    f"{checkpoint_id} is of a model without {len(fresh)} of these weights, which "
                    f"stay as they start: {fresh[0]}, ..."
                )
        super().dcp_load(state_dict, checkpoint_id, from_hf, from_quantized)

    def due(self, step: int) -> bool:
        """Whether `save` will write at this step."""
        return self.enable and self._should_save(step)

    def save_now(self, step: int) -> None:
        """Save whether or not `step` is a multiple of the interval, and wait until it is done."""
        self._now = True
        try:
            self.save(step)
            self.maybe_wait_for_saving()
        finally:
            self._now = False

    def _should_save(self, curr_step: int, last_step: bool = False) -> bool:
        return super()._should_save(curr_step, last_step or self._now)

    def _save(self, curr_step: int, last_step: bool = False) -> bool:
        if not self._should_save(curr_step, last_step):
            return False
        self.maybe_wait_for_saving()
        self._target = Path(self._create_checkpoint_id(curr_step))
        _remove([self._target])
        try:
            return super()._save(curr_step)
        except CheckpointException as failure:
            self._failed(failure)
            return False

    def _wait_for_saving(self) -> None:
        try:
            super()._wait_for_saving()
        except CheckpointException as failure:
            self._failed(failure)
        finally:
            self.save_future = None

    def _close(self) -> None:
        self.maybe_wait_for_saving()
        super()._close()

    def _failed(self, failure: CheckpointException) -> None:
        cause = storage_error(failure)
        if cause is None:
            raise failure
        _remove([self._target])
        steps = complete_steps(self.folder)
        good = f"the last good checkpoint is step-{steps[-1]}" if steps else "there is no other yet"
        free = shutil.disk_usage(self.folder).free / 2**30
        message = f"{self._target} not saved: {cause} ({free:.2f} GiB free); {good}"
        if self._now:
            raise CheckpointNotSavedError(message) from None
        if dist.get_rank() == 0:
            logger.error("%s; training goes on", message)

    def _load(self, step: int = -1) -> bool:
        unfinished = [
            path
            for path in _folders(self.folder)
            if not _complete(path) and path.name != f"step-{step}"  # others may see it complete
        ]
        if unfinished:
            names = ", ".join(path.name for path in unfinished)
            logger.warning("removed what a killed run left of %s", names)
        dist.barrier()
        _remove(unfinished)
        with warnings.catch_warnings():
            # torchtitan asks the schedulers for their lr as torch asks not to
            warnings.filterwarnings("ignore", "To get the last learning rate", UserWarning)
            try:
                return super()._load(step)
            except CheckpointException as failure:
                error = next(iter(failure.failures.values()))[0]
                reason = " ".join(str(error).split())
                raise ValueError(f"this checkpoint does not fit this run: {reason}") from failure


def storage_error(failure: CheckpointException) -> str | None:
    """What the storage complained of on any rank; None when something else went wrong."""
    for error, _ in failure.failures.values():
        if isinstance(error, OSError) and error.errno in FULL:
            return os.strerror(error.errno)
        if isinstance(error, RuntimeError) and "inline_container" in str(error):
            return (
                "a file was cut short"  # all that torch.save says when a write fails in its midst
            )
    return None


def _folders(folder: str | Path) -> list[Path]:
    return [path for path in Path(folder).glob("step-*") if path.name[5:].isdecimal()]


def _complete(path: Path) -> bool:
    return (path / ".metadata").exists()


def _remove(paths: list[Path]) -> None:
    """Remove folders on one rank, and go on when they are gone: a collective."""
    if dist.get_rank() == 0:
        for path in paths:
            shutil.rmtree(path, ignore_errors=True)
    dist.barrier()
