"""Which attention a clip is sampled with: every option counts or is refused, and so do gates."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_checkpoints import STEM
from wan_generation import generate, pipeline, refused  # noqa: F401  # a fixture

from models.attention import BSA, VSA, Dense
from models.wan.generate.options import parse
from models.wan.generate.quality.__main__ import main as quality
from models.wan.generate.quality.options import parse as parse_quality

VALUES = {
    "--top-k": "3",
    "--sparsity": "0.5",
    "--tile": "fit",
    "--query-tiles": "2",
    "--dense-steps": "1",
    "--dense-layers": "1",
    "--keep": "0.25",
    "--window": "1x2x2",
}
REFUSED = [("dense", name) for name in VALUES] + [("vsa", "--keep"), ("vsa", "--window")]


def asked_for(attention, *options, parse=parse):
    paths = "--checkpoint", "a", "--prompt-embeds", "b", "--out", "c"
    return parse([*paths, "--attention", attention, *options])


@pytest.mark.parametrize("attention, name", REFUSED)
def test_an_option_of_another_attention_is_refused(attention, name):
    words = f"{name} is for --attention .*, this is {attention}"
    with pytest.raises(ValueError, match=words):
        asked_for(attention, name, VALUES[name])
    if attention != "dense":
        with pytest.raises(ValueError, match=words):
            asked_for(attention, name, VALUES[name], parse=parse_quality)


def test_every_other_option_reaches_the_slot():
    assert asked_for("dense").slot == Dense()
    shared = "--tile", "3x5x4", "--query-tiles", "2"
    changes = dict(tile=(3, 5, 4), query_tiles=2)
    assert asked_for("vsa").slot == VSA(adapt=True)
    assert asked_for("vsa", "--top-k", "3").slot == VSA(adapt=True, top_k=3)
    found = asked_for("vsa", "--sparsity", "0.5", *shared).slot
    assert found == VSA(adapt=True, sparsity=0.5, **changes)
    assert asked_for("bsa").slot == BSA()
    assert asked_for("bsa", "--top-k", "3", "--tile", "fit").slot == BSA(kv=3, tile=None)
    given = "--sparsity", "0.5", "--keep", "0.25", "--window", "3x1x2", *shared
    found = asked_for("bsa", *given).slot
    assert found == BSA(sparsity=0.5, keep=0.25, window=(3, 1, 2), **changes)
    assert asked_for("bsa", "--window", "fit").slot == BSA(window="fit")
    with pytest.raises(ValueError, match="--top-k or --sparsity, not both"):
        asked_for("bsa", "--top-k", "3", "--sparsity", "0.5")
    for given, steps, layers in (((), 0, 0), (("--dense-steps", "4", "--dense-layers", "2"), 4, 2)):
        o = asked_for("vsa", *given)
        assert (o.dense_steps, o.dense_layers) == (steps, layers)


def test_a_vsa_checkpoint_runs_without_its_gates_if_asked(pipeline, tmp_path, capsys):  # noqa: F811
    gated = tmp_path / "gated"
    gated.mkdir()
    weights = load_file(pipeline / "transformer" / f"{STEM}.safetensors")
    for n in range(2):
        weights[f"blocks.{n}.to_gate_compress.weight"] = torch.randn(64, 64)
        weights[f"blocks.{n}.to_gate_compress.bias"] = torch.randn(64)
    save_file(weights, gated / f"{STEM}.safetensors")
    settings = (pipeline / "transformer" / "config.json").read_text()
    (gated / "config.json").write_text(settings)
    checkpoint = "--checkpoint", str(gated)
    for attention in ("dense", "vsa", "bsa"):
        given = "--attention", attention
        a, b, c = (tmp_path / f"{attention}-{i}.safetensors" for i in range(3))
        if attention == "vsa":
            assert generate(pipeline, a, *given, *checkpoint) == 0
        else:
            said = refused(capsys, pipeline, a, *given, *checkpoint)
            words = f"{gated} has VSA's gates, and --attention {attention} has no place for them: "
            assert words in said and "--attention vsa, or --drop-gates" in said
        assert generate(pipeline, b, *given, *checkpoint, "--drop-gates") == 0
        assert generate(pipeline, c, *given) == 0
        assert torch.equal(*(load_file(path)["latent"] for path in (b, c)))
    a, b = (load_file(tmp_path / f"vsa-{i}.safetensors")["latent"] for i in range(2))
    assert not torch.equal(a, b)
    assert "--drop-gates" in refused(capsys, pipeline, tmp_path / "d.mp4", "--drop-gates")


@pytest.mark.parametrize("attention", ["vsa", "bsa"])
def test_as_many_tiles_as_the_largest_video_has(pipeline, tmp_path, capsys, monkeypatch, attention):  # noqa: F811
    """81 frames have 624 tiles at 480p, and 1440 at 720p."""
    asked = []

    def remember(model, noise, *args, **options):
        asked.append((model.top_k, model.config.video))
        return torch.zeros(1, 16, 1, 2, 2)

    monkeypatch.setattr("models.wan.generate.__main__.sample", remember)
    given = "--attention", attention, "--size", "9x48x80", "81x720x1280", "--top-k"
    assert generate(pipeline, tmp_path / "a.safetensors", *given, "1440") == 0
    assert asked == [(1440, (21, 90, 160))] * 2
    out = tmp_path / "b.safetensors"
    due = "81x720x1280 has 1440 tiles of 4x4x4 tokens: give 1 to 1440"
    assert f"--top-k 1441: {due}" in refused(capsys, pipeline, out, *given, "1441")
    assert "--top-k is 0: give at least 1" in refused(capsys, pipeline, out, *given, "0")
    tiny = "--attention", attention, "--top-k", "3"
    assert "9x48x80 has 2 tiles" in refused(capsys, pipeline, out, *tiny)


def test_quality_takes_as_many_tiles_as_its_video_has(pipeline, tmp_path, monkeypatch):  # noqa: F811
    asked = []

    def remember(model, *args, **options):
        asked.append(model.top_k)
        raise OSError("enough")

    monkeypatch.setattr("models.wan.generate.quality.__main__.compare", remember)
    paths = "--checkpoint", str(pipeline), "--prompt-embeds", str(pipeline / "one.safetensors")
    given = "--attention", "vsa", "--size", "81x720x1280", "--top-k", "700"
    assert quality([*paths, "--out", str(tmp_path / "report"), *given]) == 2
    assert asked == [700]
