"""Sampling: diffusers' own loop and pipeline, from any start, with what attention is asked for."""

from contextlib import nullcontext
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
from laws import assert_accurate
from safetensors.torch import load_file
from small_wan import everything_in_fp64, exact_twin_of, twin_of
from wan_generation import generate, pipeline  # noqa: F401  # a fixture

from models.attention import VSA
from models.wan import debug
from models.wan.checkpoint import load, read_config
from models.wan.generate.clip import decode
from models.wan.generate.sampling import compile_blocks, draw_noise, first_step, sample, schedule


@pytest.mark.parametrize("sampler", ["unipc", "euler"])
def test_sampling_is_the_loop_of_diffusers(pipeline, sampler):  # noqa: F811
    """diffusers' own model and scheduler, with its times and guidance, in fp32 and fp64."""
    torch.manual_seed(0)
    noise, text, negative = torch.randn(1, 16, 2, 6, 10), *torch.randn(2, 1, 512, 32).unbind()
    model = load(read_config(pipeline), pipeline)

    def loop(theirs, dtype, step):
        x, scheduler = noise.to(dtype), schedule(sampler, 4, 3.0, noise.device)
        with torch.no_grad():
            for i, t in enumerate(scheduler.timesteps):
                with everything_in_fp64() if dtype == torch.float64 else nullcontext():
                    positive, other = (
                        theirs(x, t.expand(1), y.to(dtype)).sample for y in (text, negative)
                    )
                x = step(scheduler, i, other + 2.5 * (positive - other), x)
        return x

    def their_step(scheduler, i, velocity, x):
        return scheduler.step(velocity, scheduler.timesteps[i], x, return_dict=False)[0]

    def euler(scheduler, i, velocity, x):  # diffusers' rounds to fp32
        return x + (scheduler.sigmas[i + 1] - scheduler.sigmas[i]).double() * velocity

    plain = loop(twin_of(model), torch.float32, their_step)
    exact_step = euler if sampler == "euler" else their_step
    exact = loop(exact_twin_of(model), torch.float64, exact_step)
    options = dict(steps=4, sampler=sampler, shift=3.0, guidance=2.5)
    found = sample(model, noise, text, negative, **options)
    assert_accurate([found], [[plain]], [exact])


def test_a_clip_is_that_of_diffusers_own_pipeline(pipeline, tmp_path):  # noqa: F811
    """The command against WanPipeline: embeddings, guidance, UniPC as Wan's own settings have it,
    noise and VAE, in fp32 and fp64."""
    given = "--guidance", "4", "--steps", "4", "--seed", "7"
    assert generate(pipeline, tmp_path / "a.safetensors", *given) == 0
    found = load_file(tmp_path / "a.safetensors")["latent"][None]

    model = load(read_config(pipeline), pipeline)
    noise = draw_noise(model, (3, 6, 10), 7)
    texts = load_file(pipeline / "one.safetensors")
    texts = {n: F.pad(x, (0, 0, 0, 512 - len(x)))[None] for n, x in texts.items()}
    unipc = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    unipc |= dict(solver_order=2, solver_type="bh2", predict_x0=True, lower_order_final=True)
    vae = AutoencoderKLWan.from_pretrained(pipeline / "vae")

    def theirs(transformer, **options):
        pipe = WanPipeline(None, None, vae, UniPCMultistepScheduler(**unipc), transformer)
        pipe.set_progress_bar_config(disable=True)
        sizes = dict(num_frames=9, height=48, width=80, num_inference_steps=4, guidance_scale=4.0)
        dtype = transformer.dtype
        with mock.patch.object(pipe, "prepare_latents", lambda *a, **k: noise.to(dtype)):
            return pipe(**texts, **sizes, **options).frames

    plain = theirs(twin_of(model), output_type="latent")
    with everything_in_fp64():
        exact = theirs(exact_twin_of(model), output_type="latent")
    assert exact.dtype == torch.float64
    assert_accurate([found], [[plain]], [exact])

    pixels = theirs(twin_of(model), output_type="pt")[0].movedim(1, -1)
    ours = decode(vae, found)[0].double() / 255
    assert pixels.std() > 0.05  # of 1: not grey
    assert (ours - pixels).abs().max() < 1 / 255  # the nearest level, of latents that differ by EPS


class Straight(torch.nn.Module):
    """The true velocity of a single clip, whatever the noise level."""

    def __init__(self, noise, clip):
        super().__init__()
        self.layers, self.velocity, self.times = torch.nn.ModuleDict(), noise - clip, []

    def forward(self, x, t, text):
        self.times.append(float(t))
        return self.velocity


@pytest.mark.parametrize("sampler", ["unipc", "euler"])
def test_along_straight_paths_the_clip_is_reached(sampler):
    noise, clip = torch.randn(2, 1, 16, 2, 4, 6).unbind()
    model = Straight(noise, clip)
    text = torch.zeros(1, 512, 32)
    found = sample(model, noise, text, None, steps=7, sampler=sampler, shift=5.0)
    exact = clip.double()
    assert_accurate([found], [[noise - model.velocity]], [exact], [noise * 4])
    assert model.times[0] == pytest.approx(1, abs=2e-3) and len(model.times) == 7
    assert sorted(model.times, reverse=True) == model.times
    model.times.clear()
    begin = sample(model, noise, text, None, steps=7, sampler=sampler, start=clip, strength=0.6)
    assert_accurate([begin], [[noise - model.velocity]], [exact], [noise * 4])
    assert model.times[0] <= 0.6 and len(model.times) < 7


def test_refining_starts_at_the_strength_asked_for():
    scheduler = schedule("euler", 10, 3.0, torch.device("cpu"))
    for strength in (0.2, 0.6, 0.9, 1.0):
        first = first_step(scheduler, strength)
        assert scheduler.sigmas[first] <= strength
        assert first == 0 or scheduler.sigmas[first - 1] > strength


def test_first_steps_and_layers_are_dense_if_asked():
    model = debug(attention=VSA(sparsity=0.5, adapt=True)).build()
    seen = []
    for name, block in model.layers.items():
        block.register_forward_pre_hook(
            lambda m, args, name=name: seen.append((name, m.self_attn.slot.kv_rule is None))
        )
    noise, text = torch.randn(1, 16, 2, 6, 10), torch.randn(1, 512, 32)
    sample(model, noise, text, None, steps=3, dense_steps=1, dense_layers=1)
    assert seen == [("0", True), ("1", True)] + 2 * [("0", True), ("1", False)]
    assert all(block.self_attn.slot.kv_rule is not None for block in model.layers.values())


def test_sizes_in_a_row_compile_once_each():
    model = debug(attention=VSA(sparsity=0.5, adapt=True)).build()
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    compile_blocks(model, backend=backend)
    text = torch.randn(1, 512, 32)
    for size, programs in (((2, 6, 10), 1), ((2, 8, 6), 2), ((2, 6, 10), 2)):
        sample(model, torch.randn(1, 16, *size), text, None, steps=2)
        assert len(compiled) == programs
