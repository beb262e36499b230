"""The demo from the first clip to the report: read `run` from top to bottom."""

import logging
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from train.data import VideoDataLoader, embed_caption
from train.data.batch import Clips, Sample
from train.data.fetch import fetch_clips
from train.data.progress import WorkProgress
from train.demo.measure import SlotCall, Trial, attention_seconds, plain_copy, slot_calls, try_steps
from train.demo.model import PixelDiT
from train.demo.opening import open_demo, section
from train.demo.report import Scene, write_report
from train.demo.results import Outcome, table
from train.demo.settings import RUNS, Settings
from train.demo.show import draw_losses_of, draw_what_attention_chose, write_clips
from train.demo.training import build_trainers, train_in_turns
from train.flow import keyed_generator, sample
from train.log import Console, time_text
from train.sparsity.attention_stats import layer_stats
from train.trainer import Trainer


def say(line: str) -> None:
    print(line, flush=True)


def run(settings: Settings, out: Path, own_clips: Path | None = None) -> None:
    """Everything, with the report in `out` at the end; an earlier one's files are replaced.

    Raises what its parts raise, and KeyboardInterrupt on Ctrl-C or SIGTERM.
    """
    begin = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    if own_clips is not None:  # an error of theirs comes before any work
        load_clips(settings.trainer("vsa", own_clips, out, 1).dataloader)
    say("1/6  clips that are made up, in which tiles have copies: does VSA find them?")
    try:
        opened = open_demo(settings.opening, out, say)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()

    say("2/6  clips that were filmed")
    folder = own_clips or fetch_clips()
    train, held_out = load_clips(settings.trainer("vsa", folder, out, 1).dataloader)

    say("3/6  trial steps of each model, in a process of its own: memory and time")
    trials = {name: try_steps(settings.trainer(name, folder, out, 1)) for name in RUNS}
    step_of_all = sum(trial.step_seconds for trial in trials.values())
    turns = min(settings.steps, int(settings.seconds / step_of_all)) // settings.validations
    steps = max(1, turns) * settings.validations

    say(f"4/6  training each for {steps} steps, about {time_text(steps * step_of_all)}")
    with loaders_say(logging.ERROR):  # of these clips they have told all
        trainers = build_trainers(settings, folder, out, steps)
    try:
        train_in_turns(trainers, steps, settings.validations, say)
        models = {name: plain_copy(trainer) for name, trainer in trainers.items()}

        say("5/6  a clip of each model for each of some captions")
        shown = one_a_caption(held_out, settings.samples)
        made = sample_clips(models, [clip["caption"] for clip in shown], settings)
        for name, trainer in trainers.items():
            trainer.metrics.clips("samples", made[name], steps)

        say("6/6  attention alone, pictures, report")
        example = shown[0]
        calls = {name: slot_calls(m, *noisy(example, m)) for name, m in models.items()}
        timed = {
            name: slot_calls(plain_copy(trainer, cast=True), *noisy(example, models[name]))
            for name, trainer in trainers.items()
        }
        attention = attention_seconds(timed, settings.repeats)
    finally:
        for trainer in trainers.values():
            trainer.close()
        dist.destroy_process_group()

    outcomes = {
        name: outcome(trainer, trials[name], attention[name], calls[name])
        for name, trainer in trainers.items()
    }
    draw_losses_of(trainers, out / "losses.png")
    draw_what_attention_chose(out / "tiles.png", calls, example)
    write_clips(out, shown, made, settings.fps)
    tiling = calls["vsa"][0].inputs[-1]
    scene = Scene(
        device=device_name(),
        tokens=tiling.tokens,
        tiles=tiling.num_tiles,
        top_k=RUNS["vsa"].top_k_for(tiling),
        keep=RUNS["bsa"].keep,
        parameters=sum(p.numel() for p in models["dense"].parameters()),
        steps=steps,
        clips=len(train),
        held_out=len(held_out),
        seconds=time.monotonic() - begin,
    )
    write_report(out / "report.md", section(opened), scene, outcomes)
    say(f"\n{table(outcomes)}\n\nread {out / 'report.md'}, made in {time_text(scene.seconds)}")


def load_clips(config: VideoDataLoader.Config) -> tuple[Clips[Sample], Clips[Sample]]:
    """Both splits, decoded where they are not yet, with a word on files that are left out."""
    console, logger = Console(logging.INFO), logging.getLogger("train.data")
    console.setFormatter(logging.Formatter("     %(message)s"))
    logger.addHandler(console)
    try:
        with loaders_say(logging.INFO):
            return config.build(split="train").clips, config.build(split="validation").clips
    finally:
        logger.removeHandler(console)


@contextmanager
def loaders_say(level: int) -> Iterator[None]:
    """Within it they log what is of this level or above, after it what they logged before."""
    logger = logging.getLogger("train.data")
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def one_a_caption(clips: Clips[Sample], at_most: int) -> list[Sample]:
    """The first clip of each caption, in order."""
    first: dict[str, Sample] = {}
    for i in range(len(clips)):
        first.setdefault(clips[i]["caption"], clips[i])
    return list(first.values())[:at_most]


@torch.no_grad()
def sample_clips(
    models: Mapping[str, PixelDiT], captions: list[str], settings: Settings
) -> dict[str, Tensor]:
    """A clip [3, T, H, W] of each model for each caption, from the same noise: [captions, ...]."""
    made: dict[str, list[Tensor]] = {name: [] for name in models}
    with WorkProgress("sampling", len(models) * len(captions), say=say) as progress:
        for i, caption in enumerate(captions):
            for name, model in models.items():
                made[name].append(
                    sample(
                        model,
                        context_of(caption, model),
                        (3, *settings.video),
                        steps=settings.sample_steps,
                        seed=i,
                        shift=settings.shift,
                    )[0]
                )
                progress.show(sum(map(len, made.values())), caption)
    return {name: torch.stack(clips) for name, clips in made.items()}


def context_of(caption: str, model: PixelDiT) -> Tensor:
    """Condition tokens [1, N, context_dim] on the model's device."""
    tokens = VideoDataLoader.Config().context_tokens
    context = embed_caption(caption, tokens, model.config.context_dim)
    return context[None].to(next(model.parameters()).device)


def noisy(clip: Sample, model: PixelDiT, t: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """A clip with some noise, as a model meets it: x_t, t and the context."""
    context = context_of(clip["caption"], model)
    x0 = clip["video"][None].to(context.device).float() / 127.5 - 1
    noise = torch.randn(x0.shape, generator=keyed_generator(x0.device, "demo"), device=x0.device)
    return (1 - t) * x0 + t * noise, torch.full((1,), t, device=x0.device), context


def outcome(trainer: Trainer, trial: Trial, attention: float, calls: list[SlotCall]) -> Outcome:
    history = trainer.history
    layers = [layer_stats(call.slot, *call.inputs) for call in calls]
    return Outcome(
        first_loss=history.validation[0][1],
        validation_loss=history.validation[-1][1],
        step_seconds=statistics.median(step.seconds for step in history.steps),
        attention_seconds=attention,
        attention_flops=sum(layer.flops for layer in layers if layer is not None),
        peak_memory=trial.peak_memory,
    )


def device_name() -> str:
    """The GPU's name, or how many threads of a CPU."""
    if torch.accelerator.is_available():
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "accelerator"
    return f"CPU, {torch.get_num_threads()} threads"
