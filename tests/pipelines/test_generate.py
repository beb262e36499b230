"""The generator: a clip from any pipeline's folder is what diffusers' own pipeline makes."""

from pathlib import Path
from types import SimpleNamespace

import av
import diffusers
import pytest
import torch
from diffusers.utils import load_image
from folders import (  # noqa: F401  # wan is a fixture
    BARE,
    generate,
    refused,
    wan,
    write_bare,
    write_ltx,
    write_pair,
)
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file
from small_models import SMALL
from small_pipelines import PIPELINES

from flexsparse.diffusers import VSA, gates_of, save_gates, sparsify
from flexsparse.diffusers.families import family_of
from flexsparse.diffusers.generate import attention, clips, timing
from flexsparse.diffusers.generate.__main__ import run
from flexsparse.diffusers.generate.clip import write_mp4
from flexsparse.diffusers.generate.options import parse
from flexsparse.diffusers.generate.pipeline import compile_blocks, place

VSA_OPTIONS = "--attention", "vsa", "--sparsity", "0.5", "--tile", "2x2x2"
SPARSE = VSA(sparsity=0.5, tile=(2, 2, 2), gates=False)
NO_PARTS: dict = {}
PARTS = ["loading", "text", "transformer", "of which self-attention", "VAE", "writing"]


def latent_of(path):
    return load_file(path)["latent"]


def parts_of(said):
    """Of the table of seconds, in its order."""
    return [line.rsplit(None, 2)[0] for line in said.splitlines() if line.endswith(" s")]


def frames_of(path):
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video)]
        return torch.tensor([frame.tolist() for frame in frames]), video.average_rate


def theirs(folder, method=None, cls=diffusers.DiffusionPipeline, parts=NO_PARTS, **given):
    """What diffusers' own pipeline makes of the same arguments."""
    pipe = cls.from_pretrained(folder, **parts)
    pipe.set_progress_bar_config(disable=True)
    for name in ("transformer", "transformer_2"):
        if method and getattr(pipe, name, None) is not None:
            sparsify(getattr(pipe, name), method)
    size = dict(num_frames=9, height=48, width=80, num_inference_steps=2)
    seed = torch.Generator().manual_seed(given.pop("seed", 0))
    return pipe(**size | dict(output_type="latent") | given, generator=seed).frames[0]


@pytest.mark.parametrize("name", BARE)
def test_every_family_makes_sparse_clips(name, tmp_path):
    small = BARE[name]
    folder = write_bare(name, tmp_path / "pipeline")
    size = "x".join(map(str, small.sizes[0]))
    given = "--prompt-embeds", str(folder / "texts.safetensors"), "--size", size
    assert generate(folder, tmp_path / "a.mp4", *VSA_OPTIONS, *given) == 0
    clips = [frames_of(tmp_path / f"a-{number}.mp4")[0] for number in (1, 2)]
    assert all(clip.shape == (*small.sizes[0], 3) for clip in clips)
    assert not torch.equal(*clips)
    assert {p.name for p in tmp_path.iterdir()} == {"pipeline", "a-1.mp4", "a-2.mp4"}


@pytest.fixture
def filmed(monkeypatch):
    """The frames that go into each file."""
    found = {}

    def write(path, frames, fps):
        found[path.name] = frames
        return write_mp4(path, frames, fps)

    monkeypatch.setattr(clips, "write_mp4", write)
    return found


def test_from_a_prompt_to_a_clip(wan, tmp_path, capsys, filmed):  # noqa: F811
    """Wan: the clip is the pipeline's own, dense or sparse, of each prompt, size and seed."""
    prompts = "--prompt", "a red wall", "a blue wall", "--negative-prompt", "blue"
    numbers = "--guidance", "3", "--seed", "7", "8", "--size", "9x48x80", "5x32x48"
    given = *VSA_OPTIONS, *prompts, *numbers
    assert generate(wan, tmp_path / "a" / "c.safetensors", *given) == 0
    assert parts_of(capsys.readouterr().out) == PARTS
    names = {
        f"c-{size}-{text}-seed{seed}.safetensors": (size, text, seed)
        for size in ("9x48x80", "5x32x48")
        for text in (1, 2)
        for seed in (7, 8)
    }
    found = {p.name: latent_of(p) for p in (tmp_path / "a").iterdir()}
    assert found.keys() == names.keys()
    for name in ("c-9x48x80-1-seed8.safetensors", "c-5x32x48-2-seed7.safetensors"):
        size, text, seed = names[name]
        frames, height, width = map(int, size.split("x"))
        texts = dict(prompt=prompts[text], negative_prompt="blue", guidance_scale=3.0, seed=seed)
        sizes = dict(num_frames=frames, height=height, width=width)
        assert torch.equal(found[name], theirs(wan, SPARSE, **texts, **sizes))
    assert generate(wan, tmp_path / "dense.mp4", "--guidance", "3", "--fps", "12") == 0
    shown, rate = frames_of(tmp_path / "dense.mp4")
    wanted = theirs(wan, prompt="a red wall", guidance_scale=3.0, output_type="np")
    frames = filmed["dense.mp4"]
    assert torch.equal(frames, (torch.as_tensor(wanted) * 255).round().byte())
    assert rate == 12 and shown.shape == (9, 48, 80, 3)
    off = (shown - frames.long()).abs().double().mean()  # H.264, half the colours: not another
    assert off < 9 and off < (shown.flip(0) - frames.long()).abs().double().mean()


def test_from_prompts_in_a_file_to_clips(tmp_path, capsys, filmed):
    """LTX: as it is, and as the class that takes a picture."""
    folder = write_ltx(tmp_path / "ltx")
    (tmp_path / "texts.txt").write_text("\ufeffa red wall\n\n  blue wall\r\n", "utf-8")
    given = "--prompts", str(tmp_path / "texts.txt"), "--size", "9x32x96", "--fps", "8"
    given += ("--call", "max_sequence_length=6")
    assert generate(folder, tmp_path / "c.mp4", *VSA_OPTIONS, *given) == 0
    shown, rate = frames_of(tmp_path / "c-2.mp4")
    assert shown.shape == (9, 32, 96, 3) and rate == 8
    assert parts_of(capsys.readouterr().out) == PARTS
    size = dict(num_frames=9, height=32, width=96, max_sequence_length=6, frame_rate=8)
    wanted = theirs(folder, SPARSE, prompt="blue wall", output_type="np", **size)
    assert torch.equal(filmed["c-2.mp4"], (torch.as_tensor(wanted) * 255).round().byte())

    Image.new("RGB", (96, 32), (200, 10, 10)).save(tmp_path / "a.png")
    image = *given[2:], "--image", str(tmp_path / "a.png"), *VSA_OPTIONS
    said = refused(capsys, folder, tmp_path / "i.safetensors", *image)
    assert "LTXPipeline takes no image (--as LTXConditionPipeline or LTXImage" in said
    image += ("--as", "LTXImageToVideoPipeline")
    assert generate(folder, tmp_path / "i.safetensors", *image) == 0
    cls = diffusers.LTXImageToVideoPipeline
    picture = dict(image=load_image(str(tmp_path / "a.png")), prompt="a red wall")
    wanted = theirs(folder, SPARSE, cls, **picture, **size)
    assert torch.equal(latent_of(tmp_path / "i.safetensors"), wanted)


def test_a_picture_and_two_experts(tmp_path, capsys):
    folder = write_pair(tmp_path / "pair")
    texts = "--prompt-embeds", str(folder / "texts.safetensors")
    assert "wants image: give --image FILE" in refused(capsys, folder, tmp_path / "a.mp4", *texts)
    Image.new("RGB", (80, 48), (200, 10, 10)).save(tmp_path / "a.png")
    image = *texts, "--image", str(tmp_path / "a.png"), "--steps", "4", "--guidance", "2"
    image += "--guidance-2", "3"
    assert generate(folder, tmp_path / "a.safetensors", *image, *VSA_OPTIONS) == 0
    given = dict(image=load_image(str(tmp_path / "a.png")), **load_file(texts[1]))
    given |= dict(guidance_scale=2.0, guidance_scale_2=3.0, num_inference_steps=4)
    no_text = PIPELINES["wan"].no_text
    wanted = theirs(folder, SPARSE, parts=no_text, **given)
    assert torch.equal(latent_of(tmp_path / "a.safetensors"), wanted)
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **no_text)
    sparsify(pipe.transformer, SPARSE)  # alone
    pipe.set_progress_bar_config(disable=True)
    size = dict(num_frames=9, height=48, width=80, output_type="latent")
    other = pipe(**given, **size, generator=torch.Generator().manual_seed(0)).frames[0]
    assert not torch.equal(wanted, other), "the second transformer was sparse, too"


def lora_of(folder, file, seed=0):
    """A LoRA with every weight awake, and the latent that diffusers makes with it."""
    model = diffusers.WanTransformer3DModel.from_pretrained(folder / "transformer")
    torch.manual_seed(seed)
    layers = ["to_q", "to_k", "to_v", "to_out.0"]
    model.add_adapter(LoraConfig(r=2, target_modules=layers, init_lora_weights=False))
    state = get_peft_model_state_dict(model, adapter_name="default")
    diffusers.WanPipeline.save_lora_weights(file.parent, transformer_lora_layers=state)
    file.parent.joinpath("pytorch_lora_weights.safetensors").rename(file)


def test_lora_with_its_gates(wan, tmp_path, capsys):  # noqa: F811
    beside = tmp_path / "lora"
    beside.mkdir()
    file = beside / "pytorch_lora_weights.safetensors"
    lora_of(wan, file)
    assert generate(wan, tmp_path / "a.safetensors", *VSA_OPTIONS, "--lora", str(file)) == 0
    pipe = diffusers.WanPipeline.from_pretrained(wan)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(beside)
    size = dict(num_frames=9, height=48, width=80, num_inference_steps=2, output_type="latent")

    def made():
        return pipe("a red wall", **size, generator=torch.Generator().manual_seed(0)).frames[0]

    sparsify(pipe.transformer, SPARSE)
    assert torch.equal(latent_of(tmp_path / "a.safetensors"), made())
    sparsify(pipe.transformer, VSA(sparsity=0.5, tile=(2, 2, 2)))
    with torch.no_grad():
        for p in gates_of(pipe.transformer).values():
            p.fill_(0.1)
    save_gates(pipe.transformer, beside)
    for name, given in (("folder", beside), ("file", file)):
        out = tmp_path / f"{name}.safetensors"
        assert generate(wan, out, *VSA_OPTIONS, "--lora", str(given)) == 0
        assert torch.equal(latent_of(out), made())
    for name in ("bsa", "dense"):
        said = refused(capsys, wan, tmp_path / "c.mp4", "--attention", name, "--lora", str(beside))
        assert f"{beside} has VSA's gates, and --attention {name} has no place" in said
    dropped = "--lora", str(beside), "--drop-gates"
    assert generate(wan, tmp_path / "c.safetensors", *VSA_OPTIONS, *dropped) == 0
    assert torch.equal(*(latent_of(tmp_path / f"{x}.safetensors") for x in "ac"))


def test_a_lora_of_another_model_is_refused(wan, tmp_path, capsys):  # noqa: F811
    lora_of(wan, tmp_path / "a.safetensors")
    state = load_file(tmp_path / "a.safetensors")
    first = next(key for key in state if "lora_A" in key)
    changes = [
        ({first: torch.zeros(2, 33)}, r"1 of its 32 weights do not fit"),
        ({"transformer.blocks.7.attn1.to_q.lora_A.weight": torch.zeros(2, 32)}, "no such layer"),
    ]
    for number, (change, words) in enumerate(changes):
        save_file(state | change, tmp_path / f"{number}.safetensors")
        lora = "--lora", str(tmp_path / f"{number}.safetensors")
        said = refused(capsys, wan, tmp_path / "c.mp4", *lora)
        assert words in said and "is of another model than this WanTransformer3DModel" in said
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    for lora, words in [
        (["x.safetensors"], "has no weights of a transformer"),
        (["none"], "there is no"),
        (["a.safetensors", "a.safetensors"], "--lora names 2 files, and there is 1"),
    ]:
        paths = [str(tmp_path / path) for path in lora]
        assert words in refused(capsys, wan, tmp_path / "c.mp4", "--lora", *paths)


def test_trained_gates_of_the_folder_are_used_or_dropped(tmp_path, capsys):
    folder = write_bare("wan", tmp_path / "wan")
    pipe = diffusers.WanPipeline.from_pretrained(folder, **PIPELINES["wan"].no_text)
    sparsify(pipe.transformer, VSA())
    with torch.no_grad():
        for p in gates_of(pipe.transformer).values():
            p.fill_(0.2)
    pipe.transformer.save_pretrained(folder / "transformer")
    given = "--prompt-embeds", str(folder / "texts.safetensors"), "--seed", "0"
    out = tmp_path / "a.safetensors"
    for name in ("bsa", "dense"):
        said = refused(capsys, folder, out, *given, "--attention", name)
        assert f"--attention {name} has no place for them" in said
    made = {}
    for name, more in (("gates", ()), ("none", ("--drop-gates",))):
        assert generate(folder, tmp_path / f"{name}.safetensors", *given, *VSA_OPTIONS, *more) == 0
        made[name] = latent_of(tmp_path / f"{name}-1.safetensors")
    assert not torch.equal(made["gates"], made["none"])
    plain = write_bare("wan", tmp_path / "plain")
    assert generate(plain, tmp_path / "plain.safetensors", *given, *VSA_OPTIONS) == 0
    # its weights lie elsewhere in the file, and with that round otherwise in their last digits
    plain_one = latent_of(tmp_path / "plain-1.safetensors")
    assert (made["none"] - plain_one).abs().max() <= 1e-5 * plain_one.abs().max()
    assert "has none" in refused(capsys, plain, out, *given, *VSA_OPTIONS, "--drop-gates")


def test_one_that_fails_does_not_lose_the_others(wan, tmp_path, capsys, monkeypatch):  # noqa: F811
    decode = diffusers.AutoencoderKLWan.decode
    calls = []

    def fail(self, z, **options):
        calls.append(z)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried")
        return decode(self, z, **options)

    monkeypatch.setattr(diffusers.AutoencoderKLWan, "decode", fail)
    prompts = "--prompt", "a", "red", "wall"
    assert generate(wan, tmp_path / "c.mp4", *prompts) == 2
    kept = {"c-1.mp4", "c-2.latent.safetensors", "c-3.mp4"}
    assert {p.name for p in tmp_path.iterdir()} == kept
    assert torch.equal(latent_of(tmp_path / "c-2.latent.safetensors"), calls[1][0])
    first, last = capsys.readouterr().err.strip().splitlines()[-2:]
    last = last if last.startswith("error") else first
    assert "1 of 3 clips were not made: c-2.mp4" in last


@pytest.mark.parametrize("name", SMALL)
def test_the_blocks_of_every_family_are_compiled(name):
    model = SMALL[name].model(0)
    pipe = SimpleNamespace(transformer=model, models=["transformer"])
    compile_blocks(pipe, pipe, backend="eager")  # ready to: nothing is called
    compiled = [n for n, m in model.named_modules() if m._compiled_call_impl is not None]
    layers = [n.rpartition(".")[0] for n, _ in family_of(model).layers(model)]
    assert sorted(compiled) == sorted(layers)


def test_compiled_blocks_make_the_same_clip(tmp_path, capsys, monkeypatch):
    compiled, small = [], PIPELINES["ltx"]
    folder = write_bare("ltx", tmp_path / "pipeline")
    texts = {n: x[:1].contiguous() for n, x in load_file(folder / "texts.safetensors").items()}
    save_file(texts, tmp_path / "one.safetensors")
    size = "x".join(map(str, small.sizes[0]))
    given = "--prompt-embeds", str(tmp_path / "one.safetensors"), "--size", size, *VSA_OPTIONS

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    def ours(pipe, folder):
        compile_blocks(pipe, folder, backend=backend)

    monkeypatch.setattr("flexsparse.diffusers.generate.__main__.compile_blocks", ours)
    for name, more in (("eager", ()), ("compiled", ("--compile",))):
        assert generate(folder, tmp_path / f"{name}.safetensors", *given, *more) == 0
    eager, found = (latent_of(tmp_path / f"{name}.safetensors") for name in ("eager", "compiled"))
    assert compiled and (eager - found).abs().max() <= 1e-5 * eager.abs().max()
    assert "of which self-attention" not in capsys.readouterr().out.split("compiled.safet")[1]


def test_weights_that_are_offloaded_in_groups_make_the_same_clip(wan, tmp_path, monkeypatch):  # noqa: F811
    def grouped(pipe, device, offload):
        place(pipe, device, "group")

    assert generate(wan, tmp_path / "a.safetensors", *VSA_OPTIONS) == 0
    monkeypatch.setattr("flexsparse.diffusers.generate.__main__.place", grouped)
    assert generate(wan, tmp_path / "b.safetensors", *VSA_OPTIONS) == 0
    assert torch.equal(*(latent_of(tmp_path / f"{x}.safetensors") for x in "ab"))


def test_levels_and_layers_are_sparsifys_to_keep(wan, tmp_path, monkeypatch, capsys):  # noqa: F811
    given = []

    def remember(model, method, **when):
        given.append(when)
        sparsify(model, method)

    monkeypatch.setattr(attention, "sparsify", remember)
    when = "--dense-above", "0.85", "--dense-layers", "0"
    assert generate(wan, tmp_path / "a.safetensors", *VSA_OPTIONS, *when) == 0
    assert given[-1] == dict(dense_above=0.85, dense_layers=(0,))
    assert "the model has 2" in refused(
        capsys, wan, tmp_path / "b.mp4", *VSA_OPTIONS, "--dense-layers", "1", "2"
    )


def test_noise_above_a_level_is_dense(wan, tmp_path):  # noqa: F811
    given = dict(dense=(), sparse=VSA_OPTIONS, above=(*VSA_OPTIONS, "--dense-above", "0.01"))
    given["layers"] = *VSA_OPTIONS, "--dense-layers", "0", "1"
    made = {}
    for name, options in given.items():
        assert generate(wan, tmp_path / f"{name}.safetensors", *options) == 0
        made[name] = latent_of(tmp_path / f"{name}.safetensors") - latent_of(
            tmp_path / "dense.safetensors"
        )
    least = 1e-2 * made["sparse"].abs().max()  # of what is sparse, not of what is rounded
    assert made["above"].abs().max() < least and made["layers"].abs().max() < least


def test_seconds_are_those_of_the_parts(wan, tmp_path, monkeypatch):  # noqa: F811
    """By a clock that ticks in the parts alone."""
    now = [0.0]

    def ticking(method, seconds):
        def call(self, *args, **kwargs):
            now[0] += seconds
            return method(self, *args, **kwargs)

        return call

    monkeypatch.setattr(
        "flexsparse.diffusers.generate.clock.time", SimpleNamespace(perf_counter=lambda: now[0])
    )
    for cls, name, seconds in [
        (diffusers.WanPipeline, "_get_t5_prompt_embeds", 1),
        (diffusers.models.transformers.transformer_wan.WanAttention, "forward", 10),
        (diffusers.models.transformers.transformer_wan.WanTransformerBlock, "forward", 100),
        (diffusers.AutoencoderKLWan, "decode", 1000),
    ]:
        monkeypatch.setattr(cls, name, ticking(getattr(cls, name), seconds))
    out = tmp_path / "a.mp4"
    given = [str(wan), "--prompt", "a", "--size", "9x48x80", "--steps", "3", "--out", str(out)]
    seconds = run(parse([*given, "--guidance", "1", "--device", "cpu"])).seconds
    assert seconds["text"] == 1 and seconds[timing.VAE] == 1000
    assert seconds[timing.ATTENTION] == 3 * 2 * 10  # steps, layers
    assert seconds[timing.MODEL] == 3 * 2 * (2 * 10 + 100)  # and attention to the text


@pytest.mark.parametrize(("name", "device"), [("HeliosPipeline", "cuda"), ("WanPipeline", "cpu")])
def test_noise_is_drawn_where_the_pipeline_draws(monkeypatch, name, device):
    """torch.rand(..., device="cuda") takes no generator of a CPU."""
    there = SimpleNamespace(manual_seed=lambda seed: seed)
    made = []
    monkeypatch.setattr(torch, "Generator", lambda where="cpu": made.append(str(where)) or there)
    frames = torch.zeros(1, 1, 3, 2, 2)
    made_by = {"_execution_device": torch.device("cuda"), "__call__": lambda *_, **kw: given(kw)}

    def given(options):
        assert options["generator"] == 3
        return {"frames": frames}

    clip = SimpleNamespace(path=Path("x.safetensors"), seed=3, arguments={})
    clips.sample(type(name, (), made_by)(), clip)
    assert made == [device]


def test_help_names_every_option_in_groups(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "%" not in said.replace("100 %", "")
    for title in ("what the clips show:", "attention:", "which density?:", "weights and machine:"):
        assert title in said
