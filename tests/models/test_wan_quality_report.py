"""The report on what sparse attention changes: its files, its words, and what it refuses."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from wan_generation import generate, pipeline  # noqa: F401  # a fixture

from models.wan.generate.clip import decode, load_vae
from models.wan.generate.quality.__main__ import main, run
from models.wan.generate.quality.options import parse
from models.wan.generate.quality.pictures import ZERO, draw_frames, draw_layers, draw_steps
from models.wan.generate.quality.report import _quarters

VSA_OPTIONS = "--attention", "vsa", "--top-k", "3"


def command(folder, out, *options, prompts="one", attention=VSA_OPTIONS):
    embeds = str(folder / f"{prompts}.safetensors")
    given = ["--checkpoint", str(folder), "--prompt-embeds", embeds, "--out", str(out)]
    small = ["--tile", "2x2x2", "--size", "9x48x80", "--steps", "3"]
    return [*given, *attention, *small, *options]


def colours(path):
    with Image.open(path) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}


def test_the_report_says_what_was_found(pipeline, tmp_path):  # noqa: F811
    out = tmp_path / "a" / "report"
    found = run(parse(command(pipeline, out, "--dense-steps", "1")))
    assert [p.name for p in out.parent.iterdir()] == ["report"]
    pictures = {"layers.png", "steps.png", "psnr.png", "frames.png"}
    assert {p.name for p in out.iterdir()} == pictures | {"metrics.json", "report.md"}
    assert all(len(colours(out / picture)) > 20 for picture in pictures)
    text = (out / "report.md").read_text()
    assert all(f"]({picture})" in text for picture in pictures)
    assert "VSA: 3 of 12 tiles of 2x2x2 tokens" in text and "$" not in text

    metrics = json.loads((out / "metrics.json").read_text())
    for name, values in [
        ("noise_levels", found.levels),
        ("velocity_relative_error", found.velocity),
        ("attention_relative_error", found.attention),
        ("tiles_attended", found.tiles),
        ("queries_kept", found.queries),
    ]:
        assert metrics[name] == values.tolist()
    assert metrics["clean_latent_psnr"] == [None, *found.clean[1:].tolist()]

    vae = load_vae(pipeline / "vae", torch.device("cpu"), torch.float32)
    a, b = (decode(vae, x)[0].double() for x in (found.dense, found.sparse))
    psnr = metrics["clip_psnr"]
    by_frame = 10 * (255**2 / (a - b).square().mean((1, 2, 3))).log10()
    assert psnr["of"] == "frame" and psnr["peak"] == 255
    assert psnr["each"] == pytest.approx(by_frame.tolist())
    total = 10 * (255**2 / (a - b).square().mean()).log10()
    assert psnr["all"] == pytest.approx(total.item()) and f"{total:.3g} dB**" in text
    worst = int(by_frame.argmin())
    assert f"at its lowest {by_frame[worst]:.3g} dB in frame {worst + 1}." in text

    rows = {line.split(" |")[0]: line.split(" | ")[1:] for line in text.splitlines()}
    velocity = [*found.velocity.tolist(), found.velocity.mean().item()]
    assert rows["| velocity"] == [*(f"{x:.3g}" for x in velocity[:-1]), f"{velocity[-1]:.3g} |"]
    layer = [*found.attention[:, 1].tolist(), found.attention[:, 1].mean().item()]
    assert rows["| attention, layer 2"] == [
        *(f"{x:.3g}" for x in layer[:-1]),
        f"{layer[-1]:.3g} |",
    ]
    means = found.attention[1:].mean(0)
    order = means.argsort().tolist()
    worst, best = (f"{i + 1} ({means[i]:.3g})" for i in (order[-1], order[0]))
    assert f"The layers that lose most: {worst}. Least: {best}." in text
    left_out = 1 - (found.tiles * found.queries).mean()
    assert f"{left_out:.1%} were left out, over all layers and steps, dense ones too." in text


def test_without_a_vae_the_latents_are_compared_that_generating_makes(pipeline, tmp_path):  # noqa: F811
    folder = tmp_path / "alone"
    folder.mkdir()
    (folder / "transformer").symlink_to(pipeline / "transformer")
    (folder / "two.safetensors").symlink_to(pipeline / "two.safetensors")
    out = tmp_path / "report"
    out.mkdir()  # an empty folder may be there
    bsa = "--attention", "bsa", "--window", "1x2x2", "--sparsity", "0.5"
    found = run(parse(command(folder, out, "--prompt", "1", prompts="two", attention=bsa)))
    assert "frames.png" not in {p.name for p in out.iterdir()}
    psnr = json.loads((out / "metrics.json").read_text())["clip_psnr"]
    span = (found.dense.max() - found.dense.min()).double()
    off = (found.sparse - found.dense)[0].double().square().mean((0, 2, 3))
    assert psnr["of"] == "latent frame" and psnr["peak"] == span.item()
    assert psnr["each"] == pytest.approx((10 * (span**2 / off).log10()).tolist())
    text = (out / "report.md").read_text()
    assert "PSNR of the latent (no VAE: not of pixels)" in text and "frames.png" not in text
    assert "0.5 of the queries in each window of 1x2x2" in text and "number 1 of" in text
    for name, more in (("dense", ("--dense-layers", "2")), ("sparse", ())):
        clip = tmp_path / f"{name}.safetensors"
        generate(folder, clip, *bsa, "--tile", "2x2x2", *more, prompts="two")
        made = load_file(clip.with_stem(f"{name}-1"))["latent"]
        assert torch.equal(getattr(found, name)[0], made), "the clip that generating makes"


@given(st.integers(1, 60))
def test_quarters_hold_everything_once(size):
    parts = _quarters(size)
    assert [i for part in parts for i in range(size)[part]] == [*range(size)]
    lengths = [part.stop - part.start for part in parts]
    assert len(parts) == min(4, size) and max(lengths) - min(lengths) <= 1


def grey(path):
    with Image.open(path) as image:
        pixels = image.convert("RGB").getcolors(1 << 24)
    wanted = tuple(int(ZERO[i : i + 2], 16) for i in (1, 3, 5))
    return sum(count for count, colour in pixels if colour == wanted)


def test_pictures_show_zeros_as_such_and_take_any_size(tmp_path):
    path = tmp_path / "a.png"
    errors = torch.rand(5, 4, dtype=torch.float64) + 0.1
    draw_layers(path, errors)
    none = grey(path)
    errors[:2] = 0
    draw_layers(path, errors)
    some = grey(path)
    draw_layers(path, torch.zeros(5, 4))
    assert 10 * none < some < grey(path) / 2  # some of the letters' edges are grey
    draw_layers(path, torch.full((1, 1), 1.0))
    assert grey(path) < 100 and len(colours(path)) > 20
    draw_steps(path, torch.zeros(1), torch.tensor([torch.inf]))
    assert len(colours(path)) > 20
    clip = torch.zeros(1, 16, 32, 3, dtype=torch.uint8)
    clip[..., 0] = 250
    draw_frames(path, clip, clip.flip(-1), torch.tensor([0.0]), "VSA")
    assert {(250, 0, 0), (0, 0, 250)} <= colours(path)


def refused(capsys, folder, out, *options):
    before = sorted(out.parent.rglob("*"))
    assert main(command(folder, out, *options)) == 2
    assert sorted(out.parent.rglob("*")) == before
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_what_cannot_be_is_refused_before_any_work(pipeline, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(
        "models.wan.generate.quality.__main__.load_model", lambda *a, **k: pytest.fail("loaded")
    )
    out = tmp_path / "report"
    for options, words in [
        (("--size", "8x48x80"), "8 frames are not 4k + 1; try 9"),
        (("--top-k", "30"), "9x48x80 has 12 tiles of 2x2x2 tokens: give 1 to 12"),
        (("--sparsity", "0.5"), "not both"),
        (("--device", "foo"), "--device foo: "),
        (("--device", "meta"), "--device meta computes nothing"),
        (("--dense-steps", "3"), "nothing is sparse then"),
        (("--dense-layers", "2"), "nothing is sparse then"),
        (("--dense-layers", "3"), "--dense-layers 3: the model has 2"),
        (("--prompt", "1"), "--prompt 1: "),
        (("--prompt", "-1"), "has 1, numbered from 0"),
        (("--vae", str(tmp_path)), "has no config.json"),
        (("--vae", str(tmp_path / "none")), "has no config.json"),
        (("--checkpoint", str(tmp_path / "none")), "none"),
        (("--out", str(pipeline / "vae" / "config.json" / "a")), "cannot be written to"),
        (("--out", str(pipeline / "one.safetensors")), "is not an empty folder"),
    ]:
        assert words in refused(capsys, pipeline, out, *options), options
    out.mkdir()
    (out / "mine").write_text("mine")
    assert f"--out {out} exists and is not an empty folder" in refused(capsys, pipeline, out)
    assert (out / "mine").read_text() == "mine"


def test_a_report_that_fails_leaves_nothing(pipeline, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("models.wan.generate.quality.report.draw_frames", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(command(pipeline, tmp_path / "report"))
    assert not list(tmp_path.iterdir())
