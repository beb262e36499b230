"""Clips one after the other: what fails is told, and the others are made."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexsparse.diffusers.generate.clip import frames_of, line, write_latent, write_mp4
from flexsparse.diffusers.generate.clock import Clock
from flexsparse.diffusers.generate.timing import timed
from flexsparse.diffusers.generate.work import Clip, Work

_DRAW_ON_DEVICE = "LTXImageToVideoPipeline", "HeliosPipeline", "HeliosPyramidPipeline"
FAILURES = ValueError, OSError, RuntimeError, MemoryError, TypeError, AssertionError, AttributeError


def make_all(pipe: Any, o: argparse.Namespace, work: Work, clock: Clock) -> None:
    """Make all clips.

    Raises:
        ValueError: some were not made, which are named. The error of a single one is its own.
    """
    failed = []
    for clip in work.clips:
        try:
            print(make(pipe, o, work, clip, clock)[0], flush=True)
        except FAILURES as e:
            if len(work.clips) == 1:
                raise
            failed.append(clip)
            print(f"error: {clip.path.name}: {line(e)}", file=sys.stderr, flush=True)
        if failed and torch.cuda.is_available():
            torch.cuda.empty_cache()
    if failed:
        names = ", ".join(clip.path.name for clip in failed)
        raise ValueError(f"{len(failed)} of {len(work.clips)} clips were not made: {names}")


def make(
    pipe: Any, o: argparse.Namespace, work: Work, clip: Clip, clock: Clock
) -> tuple[Path, Tensor]:
    """Sample a clip and write it.

    Returns:
        Its file; and uint8 frames ``[frames, height, width, 3]``, or the latent ``[...]`` of a
        clip whose file is of latents.

    Raises:
        OSError: it could not be decoded or written; the message says where its latent is.
    """
    pipe.set_progress_bar_config(desc=clip.path.name, unit="step")
    models = [getattr(pipe, name) for name in work.folder.models]
    with timed(pipe, models, clock, o.compile) as decoding:
        try:
            made = sample(pipe, clip)
            with clock.part("writing"):
                if clip.path.suffix == ".safetensors":
                    return write_latent(clip.path, made), made
                return write_mp4(clip.path, made, o.fps), made
        except FAILURES as e:
            if decoding.latent is None:
                raise
            kept = write_latent(clip.path.with_suffix(".latent.safetensors"), decoding.latent[0])
            said = f"{clip.path} was not written ({line(e)}); its latent is in {kept}"
            raise OSError(said) from e


def sample(pipe: Any, clip: Clip, **changes: Any) -> Tensor:
    """A clip's frames, or its latent, as :func:`make` returns them; `changes` of the arguments."""
    latents = clip.path.suffix == ".safetensors"
    # the same noise on every device, but where a pipeline has torch.rand draw on its own
    device = pipe._execution_device if type(pipe).__name__ in _DRAW_ON_DEVICE else "cpu"
    options: dict[str, Any] = dict(
        clip.arguments,
        generator=torch.Generator(device).manual_seed(clip.seed),
        output_type="latent" if latents else "np",
    )
    out = pipe(**options | changes)
    if any(out.get(name) is not None for name in ("audio", "sound")):
        print(f"{clip.path.name}: the pipeline made sound as well, which is not written")
    made = out["frames"] if "frames" in out else out["video"]
    if isinstance(made, list):  # latents after each of several sections, the last all of them
        made = made[-1]
    if "video" in out and not latents:  # Cosmos 3's pixels alone are of no batch
        made = made[None]
    return torch.as_tensor(made)[0].cpu() if latents else frames_of(made)
