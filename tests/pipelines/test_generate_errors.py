"""What cannot be is refused in a line, before any weights are read."""

import json
import shutil
import sys

import pytest
import torch
from folders import generate, refused, wan  # noqa: F401  # a fixture
from PIL import Image
from safetensors.torch import load_file, save_file

from flexsparse.diffusers.generate import memory
from flexsparse.diffusers.generate.__main__ import main
from flexsparse.diffusers.generate.folder import open_folder
from flexsparse.diffusers.generate.options import parse
from flexsparse.diffusers.generate.pipeline import load


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    monkeypatch.setattr(
        "flexsparse.diffusers.generate.__main__.load", lambda *a, **k: pytest.fail("loaded")
    )


def test_options_that_cannot_be(wan, tmp_path, capsys):  # noqa: F811
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "not.png").write_text("no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    vsa, bsa = ("--attention", "vsa"), ("--attention", "bsa")
    for options, words in [
        (("--size", "8x48x80"), "4k + 1 frames and sides that are multiples of 16; try 9x48x80"),
        (("--size", "9x50x80"), "try 9x48x80"),
        (("--size", "9x48x80", "9x48x80"), "names one of them twice"),
        (("--seed", "1", "1"), "names one of them twice"),
        (("--seed", "9" * 20), f"--seed {'9' * 20} takes more than 64 bits"),
        (("--steps", "0"), "--steps 0 must be at least 1"),
        (("--fps", "0"), "--fps 0 must be at least 1"),
        (("--guidance", "nan"), "--guidance nan must be a finite number"),
        (("--guidance-2", "inf"), "--guidance-2 inf must be a finite number"),
        (("--guidance-2", "2"), "has no transformer_2 with a boundary_ratio: give --guidance"),
        (("--image", str(tmp_path / "a.png")), "WanPipeline takes no image (--as "),
        (("--as", "WanImageToVideoPipeline"), "wants image: give --image FILE"),
        (("--as", "LTXImageToVideoPipeline"), "wants image: give --image FILE"),
        (("--as", "CosmosVideoToWorldPipeline"), "wants image: give --image FILE"),
        (("--as", "NoPipeline"), "NoPipeline, which diffusers"),
        (("--call", "eta=1"), "--call eta: WanPipeline takes no eta"),
        (("--call", "num_inference_steps=3"), "this command sets it by itself"),
        (("--call", "output_type=pt"), "this command sets it by itself"),
        (("--call", "prompt=a"), "this command sets it by itself, give --prompt"),
        (("--call", "num_frames=9"), "this command sets it by itself, give --size"),
        (("--call", "guidance_scale_2=2"), "sets it by itself, give --guidance-2"),
        (("--call", "num_videos_per_prompt=2"), "one at a time, give several --seed"),
        (("--call", "latents=abc"), "latents is a torch.Tensor | None, and --call takes JSON"),
        (("--call", "callback_on_step_end=abc"), "and --call takes JSON"),
        (("--prompts", str(tmp_path / "none.txt")), "none.txt cannot be read"),
        (("--prompts", str(tmp_path / "empty.txt")), "empty.txt has no text"),
        (("--prompt", " "), "--prompt has no text"),
        (("--top-k", "3"), "--top-k is for --attention vsa or bsa, this is dense"),
        (("--dense-above", "0.5"), "--dense-above is for --attention vsa or bsa, this is dense"),
        ((*vsa, "--keep", "0.5"), "--keep is for --attention bsa, this is vsa"),
        ((*vsa, "--top-k", "3", "--sparsity", "0.5"), "--top-k or --sparsity, not both"),
        ((*vsa, "--top-k", "0"), "--top-k is 0: give at least 1"),
        ((*vsa, "--sparsity", "1.5"), "sparsity is 1.5"),
        ((*vsa, "--dense-above", "1"), "1: 0.85 is dense at noise levels from 0.85 on"),
        ((*vsa, "--dense-layers", "2"), "--dense-layers 2: the model has 2, numbered from 0"),
        ((*bsa, "--tile", "1x2x3", "--window", "1x2x2"), "does not divide the tile"),
        (("--compare", "dense"), "--compare is for --attention vsa or bsa, this is dense"),
        ((*vsa, "--compare", "dense", "--seed", "1", "2"), "--compare is of one clip"),
        ((*vsa, "--compare", "dense", "--sweep"), "--compare or --sweep, not both"),
        ((*vsa, "--compare", "dense", "--compile"), "which --compile closes"),
        ((*vsa, "--sweep", "--top-k", "3"), "--sweep tries its own densities: leave out --top-k"),
        ((*vsa, "--sweep", "0.5", "1"), "sparsity is 1.0"),
        ((*vsa, "--sweep", "--max-error", "0"), "--max-error 0.0 must be above 0"),
        (("--drop-gates",), "has none"),
        (("--device", "cuda:99"), "--device cuda:99"),
        (("--device", "foo"), "--device foo: "),
        (("--device", "meta"), "--device meta computes nothing"),
        (("--offload", "model"), "--offload model keeps weights off a GPU, and --device is cpu"),
        (("--offload", "group", "--compile"), "moves weights within blocks, which --compile clos"),
        (("--out", str(tmp_path / "clip.avi")), "must end in .mp4"),
        (("--out", str(tmp_path / ("a" * 250 + ".mp4"))), "cannot be written to"),
        (("--out", str(wan / "vae" / "config.json" / "a.mp4")), "cannot be written to"),
        (("--out", str(tmp_path / "not.png" / "a.mp4")), "cannot be written to"),
    ]:
        assert words in refused(capsys, wan, tmp_path / "clip.mp4", *options), options
    image = "--as", "WanImageToVideoPipeline", "--image"
    for name, words in (("none.png", "no such file"), ("not.png", "is no picture")):
        said = refused(capsys, wan, tmp_path / "a.mp4", *image, str(tmp_path / name))
        assert words in said


def test_nothing_is_replaced(wan, tmp_path, capsys):  # noqa: F811
    out, vsa = tmp_path / "clip.mp4", ("--attention", "vsa")
    for name, options in {
        "clip.mp4": (),
        "clip-2.mp4": ("--prompt", "a", "red"),
        "clip-dense.mp4": (*vsa, "--compare", "dense"),
        "clip-report": (*vsa, "--compare", "dense"),
        "clip-0.9.mp4": (*vsa, "--sweep", "0.9", "0.5"),
    }.items():
        (tmp_path / name).write_text("mine")
        assert f"{name} exists" in refused(capsys, wan, out, *options)
        (tmp_path / name).unlink()
    out.symlink_to(tmp_path / "nowhere")
    assert "clip.mp4 exists" in refused(capsys, wan, out)


def test_embeddings_that_cannot_be(wan, tmp_path, capsys):  # noqa: F811
    good = dict(prompt_embeds=torch.zeros(2, 6, 8), negative_prompt_embeds=torch.zeros(1, 6, 8))
    for number, (tensors, words) in enumerate(
        [
            (
                good | dict(pooled=torch.zeros(2, 8)),
                "pooled: WanPipeline takes no pooled; ",
            ),
            (good | dict(prompt_embeds=torch.full((2, 6, 8), torch.nan)), "are not finite"),
            (
                good | dict(negative_prompt_embeds=torch.zeros(3, 6, 8)),
                "negative_prompt_embeds of",
            ),
            ({"prompt_embeds": torch.zeros(())}, "prompt_embeds of 0 texts"),
        ]
    ):
        save_file(tensors, tmp_path / f"{number}.safetensors")
        given = "--prompt-embeds", str(tmp_path / f"{number}.safetensors")
        assert words in refused(capsys, wan, tmp_path / "a.mp4", *given)
    (tmp_path / "text").write_text("text")
    said = refused(capsys, wan, tmp_path / "a.mp4", "--prompt-embeds", str(tmp_path / "text"))
    assert "is no safetensors file" in said
    given = "--prompt-embeds", str(tmp_path / "text"), "--negative-prompt", "blue"
    assert "--prompt-embeds has its own" in refused(capsys, wan, tmp_path / "a.mp4", *given)


def edit(file, **changes):
    said = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in said.items() if v is not ...}))


def without(part, file, name):
    def take(folder):
        weights = load_file(folder / part / file)
        del weights[name]
        save_file(weights, folder / part / file, {"format": "pt"})

    return take


without_a_weight = without("transformer", "diffusion_pytorch_model.safetensors", "proj_out.weight")
QUERY = "encoder.block.0.layer.0.SelfAttention.q.weight"
without_a_query = without("text_encoder", "model.safetensors", QUERY)


def cut(folder):
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pointer(folder):
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")


def unknown(folder):
    edit(folder / "model_index.json", transformer=["diffusers", "DiTTransformer2DModel"])
    (folder / "transformer" / "config.json").write_text("{}")


BROKEN = {
    "no index": (
        lambda f: (f / "model_index.json").unlink(),
        "is no diffusers pipeline: it",
    ),
    "no json": (
        lambda f: (f / "model_index.json").write_text("{"),
        "model_index.json cannot be",
    ),
    "class": (lambda f: edit(f / "model_index.json", _class_name="Foo"), "is of Foo, which"),
    "no vae": (lambda f: shutil.rmtree(f / "vae"), "lacks vae (no folder of"),
    "no vae in it": (
        lambda f: edit(f / "model_index.json", vae=...),
        "vae (not in",
    ),
    "no text": (
        lambda f: (f / "text_encoder/model.safetensors").unlink(),
        "text_encoder (no",
    ),
    "no config": (
        lambda f: (f / "transformer/config.json").unlink(),
        "transformer (no conf",
    ),
    "no model": (lambda f: edit(f / "model_index.json", transformer=[None, None]), "a transformer"),
    "no weight": (without_a_weight, "transformer lacks 1 weights, proj_out.weight first"),
    "no query": (without_a_query, f"text_encoder lacks 1 weights, {QUERY} first"),
    "a text encoder of another size": (
        lambda f: edit(f / "text_encoder/config.json", d_ff=9),
        "no UMT5EncoderModel can be made",
    ),
    "another size": (
        lambda f: edit(f / "transformer/config.json", ffn_dim=64),
        "but [64, 32]",
    ),
    "a size that is none": (
        lambda f: edit(f / "transformer/config.json", ffn_dim="a"),
        "can be",
    ),
    "cut": (cut, "is no whole safetensors file"),
    "pointer": (pointer, "fetch it, git lfs pull"),
    "unknown": (unknown, "DiTTransformer2DModel is not a model that can be sparsified; known are "),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_folder_that_lacks_something(wan, tmp_path, capsys, how):  # noqa: F811
    shutil.copytree(wan, tmp_path / "folder")
    breaks, words = BROKEN[how]
    breaks(tmp_path / "folder")
    assert words in refused(capsys, tmp_path / "folder", tmp_path / "a.mp4")
    assert "is no folder" in refused(capsys, tmp_path / "none", tmp_path / "a.mp4")


PARTS = "transformer", "vae", "text_encoder"


def test_too_little_memory(wan, tmp_path, capsys, monkeypatch):  # noqa: F811
    parts = dict.fromkeys(PARTS, 0)
    for name in parts:
        for file in (wan / name).glob("*.safetensors"):
            parts[name] += sum(x.numel() for x in load_file(file).values()) * 2
    tokens = 3 * 3 * 5 * 8 * 32 * 2  # by rows that are alive, width and bytes
    needed = sum(parts.values()) + tokens
    half = "--dtype", "bfloat16"
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed - 1)
    said = refused(capsys, wan, tmp_path / "a.mp4", *half)
    assert f"takes at least {needed / 1e9:.2f} GB of memory on cpu (" in said
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed)
    with pytest.raises(pytest.fail.Exception, match="loaded"):
        generate(wan, tmp_path / "a.mp4", *half)


def test_a_container_has_less_than_its_machine(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "CONTAINER", tmp_path)
    whole = memory.free_bytes(cpu)
    assert whole > 10**7
    (tmp_path / "memory.max").write_text("9000000\n")
    (tmp_path / "memory.current").write_text("5000000\n")
    (tmp_path / "memory.stat").write_text("anon 9\nactive_file 2000\ninactive_file 100\n")
    assert memory.free_bytes(cpu) == 4_002_100
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(cpu) > 10**7


def test_offloading_takes_memory_of_the_gpu_for_a_model_or_for_none(wan, monkeypatch):  # noqa: F811
    """By the options, since there is no GPU."""
    folder = open_folder(wan)
    largest = max(memory.bytes_of(wan / name, "bfloat16") for name in PARTS)
    everything = sum(memory.bytes_of(wan / name, "bfloat16") for name in PARTS)
    free = dict(cuda=0, cpu=everything)
    monkeypatch.setattr(memory, "free_bytes", lambda device: free[device.type])
    for offload, due in (("model", largest), ("group", 0), (None, everything)):
        given = [str(wan), "--prompt", "a", "--out", "a.mp4", "--device", "cuda"]
        o = parse([*given, *(["--offload", offload] if offload else [])])
        free["cuda"] = due
        memory.check_memory(o, folder, tokens=0)
        if due:
            better, free["cuda"] = "group" if offload else "model", due - 1
            with pytest.raises(
                ValueError, match=rf"on cuda .*--offload {better} or a smaller --size"
            ):
                memory.check_memory(o, folder, tokens=0)
        free |= dict(cuda=due, cpu=everything - 1)  # which is stored in fp32
        with pytest.raises(ValueError, match="on cpu"):
            memory.check_memory(o, folder, tokens=0)
        free["cpu"] = everything
        memory.check_memory(o, folder, tokens=0)
    o.dtype = o.vae_dtype = "float32"  # pages of the files
    free |= dict(cuda=2 * everything, cpu=0)
    memory.check_memory(o, folder, tokens=0)


def test_guidance_of_a_pair_takes_a_pair(wan, tmp_path, capsys):  # noqa: F811
    folder, given = tmp_path / "pair", ("--guidance-2", "2")
    shutil.copytree(wan, folder)
    shutil.copytree(wan / "transformer", folder / "transformer_2")
    second = ["diffusers", "WanTransformer3DModel"]
    edit(folder / "model_index.json", transformer_2=second, boundary_ratio=None)
    assert "with a boundary_ratio" in refused(capsys, folder, tmp_path / "a.mp4", *given)
    edit(folder / "model_index.json", boundary_ratio=0.9)
    with pytest.raises(pytest.fail.Exception, match="loaded"):
        generate(folder, tmp_path / "a.mp4", *given)


def test_frames_a_second_that_no_pipeline_said_are_told(wan, tmp_path, capsys):  # noqa: F811
    said = "16 frames a second, as WanPipeline says none: --fps gives others"
    ltx = "--as", "LTXPipeline"  # which has 25
    for out, options, told in [
        ("a.mp4", (), True),
        ("a.mp4", ("--fps", "8"), False),
        ("a.mp4", ltx, False),
        ("a.safetensors", (), False),
    ]:
        capsys.readouterr()
        with pytest.raises(pytest.fail.Exception, match="loaded"):
            generate(wan, tmp_path / out, *options)
        assert (said in capsys.readouterr().out) == told, (out, options)


def test_what_cleaning_a_prompt_takes_is_named(wan, tmp_path, capsys, monkeypatch):  # noqa: F811
    def clean(text):
        raise NameError("name 'ftfy' is not defined", name="ftfy")

    monkeypatch.setattr("diffusers.pipelines.wan.pipeline_wan.prompt_clean", clean)
    said = refused(capsys, wan, tmp_path / "a.mp4")
    assert said == "error: WanPipeline takes ftfy: pip install ftfy"


def test_the_safety_checker_that_cosmos_takes_is_named(wan, tmp_path, capsys, monkeypatch):  # noqa: F811
    cosmos = "--as", "CosmosTextToWorldPipeline"
    name = "diffusers.pipelines.cosmos.pipeline_cosmos_text2world"
    monkeypatch.setattr(f"{name}.is_cosmos_guardrail_available", lambda: False)
    said = refused(capsys, wan, tmp_path / "a.mp4", *cosmos)
    takes = "CosmosTextToWorldPipeline takes cosmos_guardrail: pip install cosmos_guardrail"
    assert said == f"error: {takes}"
    monkeypatch.setattr(f"{name}.is_cosmos_guardrail_available", lambda: True)
    with pytest.raises(pytest.fail.Exception, match="loaded"):
        generate(wan, tmp_path / "a.mp4", *cosmos)
    shutil.copytree(wan, tmp_path / "folder")
    edit(tmp_path / "folder" / "model_index.json", enable_safety_checker=False)
    monkeypatch.setattr(f"{name}.is_cosmos_guardrail_available", lambda: False)
    with pytest.raises(pytest.fail.Exception, match="loaded"):
        generate(tmp_path / "folder", tmp_path / "a.mp4", *cosmos)


def test_a_package_that_a_pipeline_wants_as_it_is_loaded_is_named(wan, monkeypatch):  # noqa: F811
    def ended(*args, **options):
        raise ImportError("T5 takes\nsentencepiece")

    monkeypatch.setattr("diffusers.WanPipeline.from_pretrained", ended)
    o = parse([str(wan), "--prompt", "a", "--out", "a.mp4", "--device", "cpu"])
    with pytest.raises(ValueError, match=f"^{wan}: T5 takes sentencepiece$"):
        load(o, open_folder(wan))


@pytest.mark.parametrize("lacking", [["av"], ["peft"], ["matplotlib"]])
def test_packages_that_are_not_there_are_named(wan, tmp_path, capsys, monkeypatch, lacking):  # noqa: F811
    for name in lacking:
        monkeypatch.setitem(sys.modules, name, None)
    given = dict(
        av=(), peft=("--lora", "x"), matplotlib=("--attention", "vsa", "--compare", "dense")
    )
    said = refused(capsys, wan, tmp_path / "a.mp4", *given[lacking[0]])
    assert said == f"error: this takes {lacking[0]}: pip install {lacking[0]}"


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted: files that are whole stay"),
        (MemoryError(), 2, "error: out of memory (a smaller --size "),
        (torch.OutOfMemoryError("HIP out of memory.\nTried"), 2, "error: HIP out of memory. (a "),
        (RuntimeError("can't allocate memory: 9 bytes"), 2, "error: can't allocate memory: 9 "),
    ],
    ids=["interrupt", "memory", "accelerator", "cpu"],
)
def test_what_ends_it_in_the_middle_is_one_line(
    wan,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
    error,
    status,
    words,
):
    def ended(*args, **options):
        raise error

    monkeypatch.setattr("flexsparse.diffusers.generate.__main__.load", ended)
    assert generate(wan, tmp_path / "a.mp4") == status
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(words)
    assert not list(tmp_path.iterdir())
    error = RuntimeError("ours")
    with pytest.raises(RuntimeError, match="ours"):
        main([str(wan), "--prompt", "a", "--out", str(tmp_path / "a.mp4"), "--device", "cpu"])
