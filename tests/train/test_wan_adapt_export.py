"""A run's weights for others: averaged or not, in formats that diffusers and our loader read."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from trainer_runs import run, tiny
from wan_runs import QUIET, adapting, inputs

from flexsparse import Mass, Scaled, Threshold
from models.attention import BSA, VSA, Dense
from models.wan import debug
from models.wan.checkpoint import load
from models.wan.experts import times_of
from models.wan.formats import to_key
from train import export
from train.records.run_dir import describe, rebuild
from train.weights.lora import LoRAConfig

SLOTS = ["debug_vsa_adapt", "debug_bsa_adapt"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(config, its weights and their average at the end) by name."""
    folder = tmp_path_factory.mktemp("runs")
    given = inputs(folder)
    made = {}
    for name in SLOTS:
        config = adapting(name, folder / name, given, steps=4, validation=QUIET)
        made[name] = config, run(config)[1]
    return made


def exported(config, out, *options):
    assert export.main(["--run", config.dump_folder, "--out", str(out), *options]) == 0
    return out


def part(weights, kind):
    return {k.removeprefix(f"{kind}."): x for k, x in weights.items() if k.startswith(f"{kind}.")}


def assert_equal(found, due):
    assert found.keys() == due.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, due[name]), name


@pytest.mark.parametrize("format", ["diffusers", "wan"])
@pytest.mark.parametrize("name", SLOTS)
def test_our_loader_reads_the_average_or_the_weights_with_their_gates(runs, tmp_path, name, format):
    config, weights = runs[name]
    options = ("--format", format)
    model = load(config.model, exported(config, tmp_path / "average", *options))
    assert_equal(model.state_dict(), part(weights, "ema"))
    model = load(config.model, exported(config, tmp_path / "raw", "--raw", *options))
    assert_equal(model.state_dict(), part(weights, "model"))
    assert not torch.equal(weights["ema.head.head.weight"], weights["model.head.head.weight"])


def test_diffusers_reads_what_bsa_trained(runs, tmp_path):
    config, weights = runs["debug_bsa_adapt"]
    model = WanTransformer3DModel.from_pretrained(exported(config, tmp_path / "out"))
    due = {to_key(k, "diffusers"): x for k, x in part(weights, "ema").items()}
    assert_equal(model.state_dict(), due)


def test_any_complete_step_can_be_had(runs, tmp_path):
    config, weights = runs["debug_bsa_adapt"]
    third = load(config.model, exported(config, tmp_path / "third", "--step", "3"))
    again = load(config.model, exported(config, tmp_path / "again", "--step", "4"))
    assert_equal(again.state_dict(), part(weights, "ema"))
    assert not torch.equal(third.head.head.weight, again.head.head.weight)


def test_one_of_a_pair_says_which_noise_it_is_for(runs, tmp_path, capsys):
    config, _ = runs["debug_bsa_adapt"]
    there, low = Path(config.dump_folder), tmp_path / "low"
    low.mkdir()
    (low / "checkpoint").symlink_to(there / "checkpoint")
    said = json.loads((there / "config.json").read_text())
    for flow, times in ((dict(most=0.875), (0, 0.875)), (dict(least=0.9), (0.9, 1)), ({}, (0, 1))):
        (low / "config.json").write_text(json.dumps(said | {"flow": flow}))
        out = tmp_path / f"out {times}"
        capsys.readouterr()
        assert export.main(["--run", str(low), "--out", str(out)]) == 0
        alone = "for noise from {:g} to {:g} alone".format(*times)
        assert (alone in capsys.readouterr().out) == bool(flow)
        assert times_of(out) == times
        WanTransformer3DModel.from_pretrained(out).save_pretrained(tmp_path / "again")
        assert times_of(tmp_path / "again") == times


def test_what_cannot_be_exported_is_refused_in_a_line(runs, tmp_path, capsys):
    config, _ = runs["debug_bsa_adapt"]
    pixels = tiny(tmp_path / "pixels", steps=1)
    run(pixels)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    out, there = tmp_path / "out", config.dump_folder
    for name, change in (
        ("old", {}),
        ("other", json.loads(Path(there, "config.json").read_text())),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint").symlink_to(Path(there, "checkpoint"))
        if change:
            change["model"]["layers"] = 3
        (tmp_path / name / "config.json").write_text(json.dumps(change))
    capsys.readouterr()
    for options, words in (
        (["--run", str(tmp_path), "--out", str(out)], "config.json does not exist"),
        (["--run", str(tmp_path / "old"), "--out", str(out)], "start the run once more"),
        (["--run", str(tmp_path / "other"), "--out", str(out)], "lacks 27 weights of this model"),
        (["--run", there, "--out", str(out), "--step", "2"], "has no step 2 that is complete; it"),
        (["--run", there, "--out", str(out), "--format", "x"], "give one of diffusers, wan"),
        (
            ["--run", there, "--out", str(tmp_path / "full")],
            "is not an empty folder: give a new --out",
        ),
        (["--run", pixels.dump_folder, "--out", str(out)], "no module models.video_dit.pretrained"),
    ):
        assert export.main(options) == 1
        (line,) = capsys.readouterr().out.splitlines()
        assert words in line
    assert not out.exists()


@pytest.mark.parametrize(
    "attention",
    [
        Dense(),
        VSA(top_k=3, tile=None),
        BSA(kv=Threshold(3.5), window=None),
        BSA(kv=Mass(0.9, min_tiles=2), tile=(2, 3, 5)),
        BSA(kv=Scaled(top_k=5, rule=Threshold)),
    ],
)
def test_a_models_config_is_read_from_what_a_run_writes(attention):
    config = debug(attention=attention, video=(2, 6, 10))
    written = json.dumps({"module": "models.wan.config", "model": describe(config)})
    assert export.model_config(json.loads(written)) == config
    with pytest.raises(ValueError, match="WanConfig is no class of LoRAConfig"):
        rebuild(describe(debug(attention=LoRAConfig())), {"LoRAConfig": LoRAConfig})
