"""A clip made twice, densely and by the method, and the report beside them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from flexsparse.diffusers.families import family_of
from flexsparse.diffusers.generate.clips import make
from flexsparse.diffusers.generate.clock import Clock
from flexsparse.diffusers.generate.compare.observe import latents_of, observed
from flexsparse.diffusers.generate.compare.report import write_report
from flexsparse.diffusers.generate.compare.results import Clips, Quality
from flexsparse.diffusers.generate.work import Work, beside, report_of


def compare(
    pipe: Any, o: argparse.Namespace, work: Work, own: list[dict[str, Any]], clock: Clock
) -> Quality:
    """Write both clips and the report; returns what it is made of.

    Args:
        pipe: with sparse transformers.
        own: of each, the processors that it had before, by layer.
        clock: of the sparse clip, since the dense one is made with each layer run twice.
    """
    (clip,) = work.clips
    models = [getattr(pipe, name) for name in work.folder.models]
    with latents_of(models) as sparse:
        path, found = make(pipe, o, work, clip, clock)
    print(path, flush=True)
    with observed(models, own) as dense:
        twin = replace(clip, path=beside(clip.path, "dense"))
        path, wanted = make(pipe, o, work, twin, Clock(clock.device))
    print(path, flush=True)
    layers = max(len(list(family_of(model).layers(model))) for model in models)
    quality = Quality.of(dense.steps, sparse.steps, layers)
    report = report_of(clip.path)
    write_report(report, settings_of(o, work), quality, Clips.of(wanted, found))
    print(report / "report.md")
    return quality


def settings_of(o: argparse.Namespace, work: Work) -> dict[str, str]:
    """What was compared, in words, from the command's options."""
    (clip,) = work.clips
    shown = {n: v for n, v in clip.arguments.items() if isinstance(v, int | float | str)}
    given: dict[str, Any] = {"pipeline": o.pipeline, "attention": o.method, **o.when}
    given |= {"lora": " ".join(o.lora)} if o.lora else {}
    given |= shown | {"seed": clip.seed, "computed": f"in {o.dtype} on {o.device}"}
    return {name.replace("_", " "): str(value) for name, value in given.items()}
