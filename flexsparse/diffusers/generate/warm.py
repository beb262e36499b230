"""Steps that are not timed, so that what is compiled at first calls is compiled by them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from flexsparse.diffusers.families import family_of
from flexsparse.diffusers.generate.clips import sample
from flexsparse.diffusers.generate.folder import parameters_of
from flexsparse.diffusers.generate.work import Clip, Work

STEPS = "num_inference_steps"
Seen = set[tuple[str, bool]]


def warm(pipe: Any, o: argparse.Namespace, work: Work, clip: Clip, sparse: bool) -> None:
    """Call each transformer in each of its bands of noise levels, in as few steps as reach them
    all, or as a whole clip does."""
    above = o.when.get("dense_above") if sparse else None
    due = _due([*work.folder.models], above, pipe.config.get("boundary_ratio"))
    bare = replace(clip, path=clip.path.with_suffix(".safetensors"))  # a latent, not decoded
    seen: Seen = set()
    for steps in _tries(pipe, clip):
        with _calls(pipe, work, above, seen):
            sample(pipe, replace(bare, arguments=clip.arguments | steps))
        if seen >= due:
            break


def _due(models: list[str], above: float | None, boundary: float | None) -> Seen:
    """Which of them may be called, and in which band: of a pair the first at high noise levels."""
    if above is None:
        return {(name, False) for name in models}
    due = {(name, high) for name in models for high in (False, True)}
    if boundary is not None:
        due -= {("transformer", False)} if above <= boundary else set()
        due -= {("transformer_2", True)} if above >= boundary else set()
    return due


def _tries(pipe: Any, clip: Clip) -> list[dict[str, int]]:
    """Arguments for ever more steps: with few of them a scheduler's shift may leave low noise
    levels, or a pair's second transformer, out."""
    takes = parameters_of(pipe)
    whole = clip.arguments.get(STEPS, takes[STEPS].default if STEPS in takes else None)
    if not isinstance(whole, int) or {"timesteps", "sigmas"} & clip.arguments.keys():
        return [{}]
    return [*({STEPS: few} for few in (2, 4, 8) if few < whole), {}]


@contextmanager
def _calls(pipe: Any, work: Work, above: float | None, seen: Seen) -> Iterator[None]:
    """Within it, calls of a transformer are noted: its name, and whether at the level or above."""
    hooks = []
    for name in work.folder.models:

        def note(model: Any, args: Any, kwargs: Any, name: str = name) -> None:
            high = above is not None and bool(
                (family_of(model).noise_of(model, args, kwargs) >= above).any()
            )
            seen.add((name, high))

        model = getattr(pipe, name)
        hooks.append(model.register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
