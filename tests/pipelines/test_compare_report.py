"""A clip compared with its dense twin: the report's files and words; and several densities."""

import json

import diffusers
import pytest
import torch
from folders import generate, wan, write_pair  # noqa: F401  # a fixture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from flexsparse.diffusers.generate import sweep as of_sweep
from flexsparse.diffusers.generate.compare import report
from flexsparse.diffusers.generate.compare.pictures import (
    ZERO,
    draw_frames,
    draw_held,
    draw_layers,
    draw_steps,
)
from flexsparse.diffusers.generate.compare.report import quarters, write_report
from flexsparse.diffusers.generate.compare.results import Clips, Quality
from flexsparse.diffusers.generate.sweep import Row, table

VSA_OPTIONS = "--attention", "vsa", "--tile", "2x2x2"
COMPARE = *VSA_OPTIONS, "--top-k", "3", "--compare", "dense", "--steps", "3"


def colours(path):
    with Image.open(path) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}


def test_the_report_says_what_was_found(wan, tmp_path, monkeypatch):  # noqa: F811
    seen = []
    write = report._report
    monkeypatch.setattr(report, "_report", lambda *given: seen.append(given) or write(*given))
    assert generate(wan, tmp_path / "c.mp4", *COMPARE) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"c.mp4", "c-dense.mp4", "c-report"}
    out = tmp_path / "c-report"
    pictures = {"layers.png", "held.png", "steps.png", "psnr.png", "frames.png"}
    assert {p.name for p in out.iterdir()} == pictures | {"metrics.json", "report.md"}
    assert all(len(colours(out / picture)) > 20 for picture in pictures)
    text = (out / "report.md").read_text()
    assert all(f"]({picture})" in text for picture in pictures) and "$" not in text
    assert "| attention | VSA(" in text and "| prompt | a red wall |" in text

    ((_, found, clips),) = seen
    metrics = json.loads((out / "metrics.json").read_text())
    for name, values in [
        ("noise_levels", found.levels),
        ("output_relative_error", found.output),
        ("attention_relative_error", found.attention),
        ("tiles_attended", found.tiles),
        ("queries_kept", found.queries),
        ("dense_weight_held", found.held),
    ]:
        assert metrics[name] == values.tolist()
    assert metrics["latents_psnr"] == [None, *found.latents[1:].tolist()]
    a, b = clips.dense.double(), clips.sparse.double()
    psnr = metrics["clip_psnr"]
    by_frame = 10 * (255**2 / (a - b).square().mean((1, 2, 3))).log10()
    assert psnr["of"] == "frame" and psnr["peak"] == 255
    assert psnr["each"] == pytest.approx(by_frame.tolist())
    total = 10 * (255**2 / (a - b).square().mean()).log10()
    assert psnr["all"] == pytest.approx(total.item()) and f"{total:.3g} dB**" in text
    assert metrics["clip_error"] == pytest.approx(10 ** (-total.item() / 20))
    worst = int(by_frame.argmin())
    assert f"at its lowest {by_frame[worst]:.3g} dB in frame {worst + 1}." in text

    rows = {line.split(" |")[0]: line.split(" | ")[1:] for line in text.splitlines()}
    for name, values in [
        ("| error of the model's output", found.output),
        ("| error of attention, layer 1", found.attention[:, 1]),
        ("| weight held, layer 0", found.held[:, 0]),
    ]:
        cells = [f"{x:.3g}" for x in (*values.tolist(), values.mean().item())]
        assert rows[name] == [*cells[:-1], f"{cells[-1]} |"]
    means = found.attention.mean(0)
    order = means.argsort().tolist()
    worst, best = (f"{i} ({means[i]:.3g})" for i in (order[-1], order[0]))
    assert f"The layers that lose most: {worst}. Least: {best}." in text
    left_out = 1 - (found.tiles * found.queries).mean()
    assert f"{left_out:.1%} were left out, over all layers and steps" in text
    assert f"hold {found.held.mean():.1%} of dense attention's weight, in its least" in text


def test_latents_are_compared_as_a_whole(wan, tmp_path):  # noqa: F811
    bsa = "--attention", "bsa", "--tile", "2x2x2", "--window", "1x2x2", "--compare", "dense"
    assert generate(wan, tmp_path / "c.safetensors", *bsa) == 0
    out = tmp_path / "c-report"
    assert "frames.png" not in {p.name for p in out.iterdir()}
    found, dense = (load_file(tmp_path / f"{n}.safetensors")["latent"] for n in ("c", "c-dense"))
    psnr = json.loads((out / "metrics.json").read_text())["clip_psnr"]
    span = (dense.max() - dense.min()).double()
    off = (found - dense).double().square().mean()
    assert psnr["of"] == "latent" and psnr["peak"] == pytest.approx(span.item())
    assert psnr["each"] == pytest.approx([(10 * (span**2 / off).log10()).item()])
    assert "PSNR of the latent (not decoded" in (out / "report.md").read_text()
    for name, options in (("sparse", bsa[:-2]), ("plain", ())):
        assert generate(wan, tmp_path / f"{name}.safetensors", *options) == 0
    made, plain = (load_file(tmp_path / f"{n}.safetensors")["latent"] for n in ("sparse", "plain"))
    assert torch.equal(found, made) and torch.equal(dense, plain)


def test_both_experts_are_compared(tmp_path):
    folder = write_pair(tmp_path / "pair")
    Image.new("RGB", (80, 48), (200, 10, 10)).save(tmp_path / "a.png")
    given = "--image", str(tmp_path / "a.png"), "--prompt-embeds", str(folder / "texts.safetensors")
    options = *VSA_OPTIONS, "--top-k", "1", "--compare", "dense", "--steps", "4"
    assert generate(folder, tmp_path / "c.safetensors", *given, *options) == 0
    metrics = json.loads((tmp_path / "c-report" / "metrics.json").read_text())
    levels = metrics["noise_levels"]
    assert levels[0] > 0.8 > levels[-1]  # where the second begins
    assert all(error > 0 for row in metrics["attention_relative_error"] for error in row)
    assert all(error > 0 for error in metrics["output_relative_error"])


def test_a_report_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    some = torch.rand(2, 3, dtype=torch.float64)
    quality = Quality(some[:, 0], some[:, 1], some, some, some, some, some[:, 2])
    clips = Clips(*torch.randint(0, 255, (2, 3, 8, 8, 3), dtype=torch.uint8))
    monkeypatch.setattr(report, "draw_layers", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(tmp_path / "report", {}, quality, clips)
    assert not list(tmp_path.iterdir())


@given(st.integers(1, 60))
def test_quarters_hold_everything_once(size):
    parts = quarters(size)
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
    draw_held(path, torch.ones(1, 1))
    assert len(colours(path)) > 20
    draw_steps(path, torch.zeros(1), torch.tensor([torch.inf]))
    assert len(colours(path)) > 20
    clip = torch.zeros(1, 16, 32, 3, dtype=torch.uint8)
    clip[..., 0] = 250
    draw_frames(path, clip, clip.flip(-1), torch.tensor([0.0]), "sparse")
    assert {(250, 0, 0), (0, 0, 250)} <= colours(path)


def test_a_sweep_makes_the_clips_that_the_options_make(wan, tmp_path, capsys, monkeypatch):  # noqa: F811
    rows = []
    monkeypatch.setattr(of_sweep, "table", lambda given, most: rows.extend(given) or ["TABLE"])
    out = tmp_path / "c.safetensors"
    assert generate(wan, out, *VSA_OPTIONS, "--sweep", "0.5", "0.9") == 0
    assert [row.sparsity for row in rows] == [None, 0.9, 0.5]
    assert capsys.readouterr().out.strip().endswith("TABLE")
    assert {p.name for p in tmp_path.iterdir()} == {row.path.name for row in rows}
    made = [load_file(row.path)["latent"] for row in rows]
    for row, latent in zip(rows, made):
        name = "plain" if row.sparsity is None else f"at-{row.sparsity}"
        options = () if row.sparsity is None else (*VSA_OPTIONS, "--sparsity", str(row.sparsity))
        assert generate(wan, tmp_path / f"{name}.safetensors", *options) == 0
        assert torch.equal(load_file(tmp_path / f"{name}.safetensors")["latent"], latent)
        off = (latent - made[0]).double().square().mean().sqrt()
        assert row.error == pytest.approx((off / (made[0].max() - made[0].min())).item())
        assert row.seconds > 0


@pytest.mark.parametrize(("above", "kinds", "steps"), [(0.97, 3, 6), (0.85, 3, 11), (0.6, 2, 11)])
def test_what_is_timed_was_called_before(tmp_path, monkeypatch, above, kinds, steps):
    """With a shift of 7 two steps are at 1,000 and 875: of one transformer, and maybe one band."""
    folder = write_pair(tmp_path / "pair")
    flow = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=7.0)
    diffusers.UniPCMultistepScheduler(**flow).save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    index |= dict(scheduler=["diffusers", "UniPCMultistepScheduler"])
    (folder / "model_index.json").write_text(json.dumps(index))
    Image.new("RGB", (80, 48), (200, 10, 10)).save(tmp_path / "a.png")
    calls, runs = [], []
    forward, timed = diffusers.WanTransformer3DModel.forward, of_sweep.make

    def call(model, hidden_states, timestep, *args, **kwargs):
        calls.append((id(model), timestep.max().item() >= 1000 * above))
        return forward(model, hidden_states, timestep, *args, **kwargs)

    def make(*given):
        runs.append([*calls])
        calls.clear()
        made = timed(*given)
        runs.append([*calls])
        calls.clear()
        return made

    monkeypatch.setattr(diffusers.WanTransformer3DModel, "forward", call)
    monkeypatch.setattr(of_sweep, "make", make)
    options = "--sweep", "0.5", "--dense-above", str(above), "--steps", "5", "--guidance", "1"
    given = "--prompt-embeds", str(folder / "texts.safetensors"), "--image", str(tmp_path / "a.png")
    assert generate(folder, tmp_path / "c.safetensors", *VSA_OPTIONS, *options, *given) == 0
    (before, dense), (warm, sparse) = runs[:2], runs[2:]
    assert {model for model, _ in before} == {model for model, _ in dense}
    assert {*warm} == {*sparse} and len({*sparse}) == kinds
    assert len(dense) == len(sparse) == 5 and len(before) == 2 + 4 and len(warm) == steps


def row(sparsity, seconds, error):
    return Row(sparsity, seconds, 20.0, error, "c.mp4")


def test_the_quickest_that_is_near_enough_is_named():
    rows = [row(None, 10.0, 0.0), row(0.9, 2.0, 0.2), row(0.8, 4.0, 0.04), row(0.5, 12.0, 0.01)]
    lines = table(rows, 0.05)
    assert [line.split()[0] for line in lines[1:5]] == ["0.9", "0.8", "dense", "0.5"]
    assert "5.00x" in lines[1] and "20 dB" in lines[1] and "0.2000" in lines[1]
    assert lines[5].startswith("the quickest with an error of at most 0.05: --sparsity 0.8, 2.50")
    assert "--sparsity 0.9" in table(rows, 0.3)[5]
    assert table(rows, 0.03)[5].startswith("none is quicker than dense")
