"""Wan's generation from end to end."""

import shutil
from types import SimpleNamespace

import av
import pytest
import torch
from diffusers import AutoencoderKLWan
from laws import assert_accurate
from safetensors.torch import load_file, save_file
from wan_generation import generate, pipeline, refused  # noqa: F401  # a fixture

from models.wan.generate.__main__ import run
from models.wan.generate.clip import decode, load_vae
from models.wan.generate.options import parse

SPARSE = [("dense",), ("vsa", "--top-k", "2"), ("bsa", "--sparsity", "0.5", "--tile", "fit")]


def read(path):
    return load_file(path)["latent"]


def parts_of(said):
    """Of the table of seconds, in its order."""
    return [line.rsplit(None, 2)[0] for line in said.splitlines() if line.endswith(" s")]


def frames_of(path):
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        assert video.average_rate == 16
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video)]


@pytest.mark.parametrize("attention", SPARSE, ids=lambda given: given[0])
def test_a_checkpoint_becomes_a_clip(pipeline, tmp_path, capsys, attention):  # noqa: F811
    options = ("--window", "1x1x1") if attention[0] == "bsa" else ()
    assert generate(pipeline, tmp_path / "a" / "clip.mp4", "--attention", *attention, *options) == 0
    frames = frames_of(tmp_path / "a" / "clip.mp4")
    assert len(frames) == 9 and frames[0].shape == (48, 80, 3)
    said = capsys.readouterr().out
    assert parts_of(said) == ["text", "loading", "DiT", "of which attention", "VAE", "writing"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["clip.mp4"]


def test_the_clip_is_the_decoded_latent_and_a_seed_gives_the_same_one(pipeline, tmp_path):  # noqa: F811
    for name in ("clip.mp4", "latent.safetensors", "again.safetensors"):
        assert generate(pipeline, tmp_path / name, "--guidance", "3") == 0
    latent, again = (read(tmp_path / f"{name}.safetensors") for name in ("latent", "again"))
    assert latent.shape == (16, 3, 6, 10) and torch.equal(latent, again)
    vae = load_vae(pipeline / "vae", torch.device("cpu"), torch.float32)
    pixels = decode(vae, latent[None])[0].float()
    shown = torch.tensor([frame.tolist() for frame in frames_of(tmp_path / "clip.mp4")])
    assert (pixels - shown).abs().mean() < 4  # H.264 and half the colours, not another clip
    assert (pixels - shown.flip(0)).abs().mean() > (pixels - shown).abs().mean()
    generate(pipeline, tmp_path / "other.safetensors", "--guidance", "3", "--seed", "1")
    assert not torch.equal(load_file(tmp_path / "other.safetensors")["latent"], latent)


def test_sizes_and_prompts_make_a_clip_each(pipeline, tmp_path):  # noqa: F811
    sizes = "--size", "5x32x48", "9x16x32"
    assert generate(pipeline, tmp_path / "c.safetensors", *sizes, prompts="two") == 0
    shapes = {p.name: list(load_file(p)["latent"].shape) for p in tmp_path.iterdir()}
    assert shapes == {
        "c-5x32x48-0.safetensors": [16, 2, 4, 6],
        "c-5x32x48-1.safetensors": [16, 2, 4, 6],
        "c-9x16x32-0.safetensors": [16, 3, 2, 4],
        "c-9x16x32-1.safetensors": [16, 3, 2, 4],
    }


def test_a_draft_is_refined_at_the_full_size(pipeline, tmp_path):  # noqa: F811
    options = "--draft", "32x48", "--attention", "vsa", "--steps", "5"
    assert generate(pipeline, tmp_path / "a.safetensors", *options) == 0
    assert load_file(tmp_path / "a.safetensors")["latent"].shape == (16, 3, 6, 10)


def test_compiled_it_is_the_same_and_names_the_time_of_attention(pipeline, tmp_path, capsys):  # noqa: F811
    options = "--attention", "vsa", "--sparsity", "0.5", "--guidance", "1"
    for name, more in (("eager", ()), ("compiled", ("--compile",))):
        assert generate(pipeline, tmp_path / f"{name}.safetensors", *options, *more) == 0
    eager, compiled = (read(tmp_path / f"{name}.safetensors") for name in ("eager", "compiled"))
    generate(pipeline, tmp_path / "exact.safetensors", *options, "--dtype", "float64")
    assert_accurate([compiled], [[eager]], [read(tmp_path / "exact.safetensors").double()])
    compiled = "of which first steps (compilation)", "of which attention (a layer by itself)"
    begin, end = ["text", "loading", "DiT"], ["writing"]
    plain = [*begin, "of which attention", *end]
    assert parts_of(capsys.readouterr().out) == plain + [*begin, *compiled, *end] + plain


def test_the_steps_that_compile_are_counted_apart(pipeline, tmp_path, monkeypatch):  # noqa: F811
    """At each size the first step, and the first sparse one after --dense-steps."""
    now = [0]

    def sample(model, noise, *texts, steps, dense_steps, each, start, **options):
        begin = 0 if start is None else 1
        for step in range(steps - begin):
            each(step, steps - begin)
            now[0] += 10 if step == 0 or begin + step == dense_steps else 1
        return noise

    here = "models.wan.generate"
    monkeypatch.setattr(f"{here}.clock.time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(f"{here}.__main__.sample", sample)
    for name in ("compile_blocks", "attention_alone"):
        monkeypatch.setattr(f"{here}.__main__.{name}", lambda *args: None)
    paths = "--checkpoint", str(pipeline), "--prompt-embeds", str(pipeline / "two.safetensors")
    given = "--size", "9x48x80", "--draft", "32x48", "--attention", "vsa", "--steps", "4"
    for dense, steps, first in ((0, 2 * (13 + 12), 20), (2, 2 * (22 + 21), 40)):
        more = "--dense-steps", str(dense), "--out", str(tmp_path / f"{dense}.safetensors")
        seconds = run(parse([*paths, *given, *more, "--compile"])).seconds
        assert seconds["DiT"] == steps
        assert seconds["of which first steps (compilation)"] == first


def test_what_cannot_be_is_refused_before_any_work(pipeline, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(
        "models.wan.generate.__main__.load_model", lambda *a, **k: pytest.fail("loaded")
    )
    out = tmp_path / "clip.mp4"
    for options, words in [
        (("--size", "8x48x80"), "8 frames are not 4k + 1; try 9"),
        (("--size", "9x50x80"), "multiples of 16; try 9x48x80"),
        (("--size", "9x48x80", "9x48x80"), "some of them twice"),
        (("--top-k", "3"), "--top-k is for --attention vsa or bsa, this is dense"),
        (("--attention", "vsa", "--sparsity", "1.5"), "sparsity is 1.5"),
        (
            ("--attention", "bsa", "--tile", "1x2x3", "--window", "1x2x2"),
            "does not divide the tile",
        ),
        (("--attention", "vsa", "--dense-layers", "3"), "--dense-layers 3: the model has 2"),
        (("--steps", "0"), "--steps 0"),
        (
            ("--draft", "40x80"),
            "--draft 40x80: height and width must be multiples of 16; try 32x",
        ),
        (("--draft", "32x96"), "--draft 32x96 is larger than --size 9x48x80: give 48x80 at most"),
        (("--size", "9x64x64", "9x48x80", "--draft", "64x64"), "--draft 64x64 is larger than --si"),
        (("--refine-from", "0.5"), "--refine-from is for --draft"),
        (("--refine-from", "1", "--draft", "32x48"), "--refine-from 1.0"),
        (("--vae", str(tmp_path)), "has no config.json"),
        (("--checkpoint", str(tmp_path / "none")), "none"),
        (("--prompt-embeds", str(tmp_path / "none")), "there is no such file"),
        (("--out", str(tmp_path / "clip.avi")), "must end in .mp4"),
        (("--out", str(tmp_path / ("a" * 250 + ".mp4"))), "cannot be written to"),
        (("--device", "cuda:99"), "--device cuda:99"),
        (("--device", "foo"), "--device foo: "),
        (("--device", "meta"), "--device meta computes nothing"),
        (("--seed", "9" * 20), f"--seed {'9' * 20} takes more than 64 bits"),
        (("--seed", str(-(2**63) - 1)), "takes more than 64 bits"),
        (("--guidance", "nan"), "must be finite"),
        (("--shift", "inf"), "must be finite"),
        (("--out", str(pipeline / "vae" / "config.json" / "a.mp4")), "cannot be written to"),
    ]:
        assert words in refused(capsys, pipeline, out, *options), options
    out.write_text("mine")
    assert f"--out {out} exists" in refused(capsys, pipeline, out)
    assert out.read_text() == "mine"
    link = tmp_path / "link.mp4"
    link.symlink_to(tmp_path / "nowhere.mp4")
    assert f"--out {link} exists" in refused(capsys, pipeline, link)
    assert link.is_symlink() and not link.exists()


def test_embeddings_that_do_not_fit_are_named(pipeline, tmp_path, capsys):  # noqa: F811
    file = tmp_path / "embeds.safetensors"
    for tensors, words in [
        (dict(prompt_embeds=torch.zeros(4, 16)), r"prompt_embeds is [4, 16], but this model takes"),
        (dict(prompt_embeds=torch.zeros(600, 32)), "[1 to 512 tokens, 32]"),
        (dict(prompt_embeds=torch.zeros(4, 32)), "needs negative_prompt_embeds"),
        (dict(embeds=torch.zeros(4, 32)), "has embeds; prompt_embeds is due"),
        (dict(prompt_embeds=torch.full((4, 32), torch.nan)), "not finite"),
        (dict(prompt_embeds=torch.zeros(0, 7, 32)), "prompt_embeds is [0, 7, 32]"),
    ]:
        save_file(tensors, file)
        options = "--prompt-embeds", str(file)
        assert words in refused(capsys, pipeline, tmp_path / "a.mp4", *options)
    file.write_bytes(b"no tensors")
    assert "is no safetensors file" in refused(capsys, pipeline, tmp_path / "a.mp4", *options)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_clip_that_is_not_finite_is_an_error(pipeline, tmp_path, capsys, dtype):  # noqa: F811
    """It would be black. What overflows in fp16 is finite in fp32."""
    shutil.copytree(pipeline, broken := tmp_path / "broken")
    file = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    key = "blocks.1.ffn.net.2.bias"
    weights[key] = weights[key] + (6e4 if dtype == "float16" else torch.nan)
    weights["blocks.1.scale_shift_table"] = weights["blocks.1.scale_shift_table"] + 2.0
    save_file(weights, file)
    given = "--checkpoint", str(broken), "--dtype", dtype, "--guidance", "1"
    assert generate(pipeline, tmp_path / "a.mp4", *given) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"velocity is not finite in {dtype}" in said and not (tmp_path / "a.mp4").exists()
    if dtype == "float16":
        assert "noise level 0.999 " in said and "give --dtype bfloat16 or float32" in said
        assert generate(pipeline, tmp_path / "b.safetensors", *given, "--dtype", "float32") == 0
    else:
        assert "nor are 1 of its weights, layers.1.ffn.2.bias first" in said


def test_a_picture_that_is_not_finite_is_an_error(pipeline, tmp_path, capsys):  # noqa: F811
    shutil.copytree(pipeline / "vae", tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file(
        weights | {"decoder.conv_in.bias": torch.full((4,), torch.nan)}, file, {"format": "pt"}
    )
    assert generate(pipeline, tmp_path / "a.mp4", "--vae", str(tmp_path / "vae")) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the VAE's pixels are not finite" in said and "its latent is in" in said
    assert not (tmp_path / "a.mp4").exists() and read(tmp_path / "a.latent.safetensors").ndim == 4


def test_a_vae_that_does_not_fit_and_wan_2_2_are_refused(pipeline, tmp_path, capsys):  # noqa: F811
    sizes = dict(base_dim=4, z_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1, attn_scales=[])
    eight = dict(latents_mean=[0.0] * 8, latents_std=[1.0] * 8)
    AutoencoderKLWan(**sizes, **eight).save_pretrained(tmp_path / "vae")
    said = refused(capsys, pipeline, tmp_path / "a.mp4", "--vae", str(tmp_path / "vae"))
    assert "has 8 channels and strides of 4 frames and 8 pixels; this model's has 16" in said
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    shutil.copytree(pipeline / "vae", tmp_path / "vae", dirs_exist_ok=True)
    weights = {k: x for k, x in load_file(file).items() if not k.startswith("decoder.conv_in")}
    save_file(weights, file, {"format": "pt"})
    said = refused(capsys, pipeline, tmp_path / "a.mp4", "--vae", str(tmp_path / "vae"))
    assert "lacks 2 weights, decoder.conv_in.bias first" in said
    shutil.copytree(pipeline, tmp_path / "two")
    shutil.copytree(pipeline / "transformer", tmp_path / "two" / "transformer_2")
    said = refused(capsys, pipeline, tmp_path / "a.mp4", "--checkpoint", str(tmp_path / "two"))
    assert "has two models, transformer for noise above 0.875" in said
