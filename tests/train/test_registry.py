"""Runs by name, options on the command line, and errors of one line."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from models.attention import VSA
from models.video_dit import VideoDiT
from train.__main__ import main
from train.records.run_dir import describe
from train.registry import find_runs, load_config
from train.sparsity.annealing import Annealing

RUNS = find_runs("models.video_dit")


@pytest.mark.parametrize("name", RUNS)
def test_every_run_fits_its_data_and_says_where_it_writes(name):
    config = RUNS[name]()
    frames, height, width = config.model.video
    data = config.dataloader
    assert (data.num_frames, data.height, data.width) == (frames, height, width)
    assert data.context_dim == config.model.context_dim
    assert config.dump_folder == f"out/{name}"
    assert isinstance(config.model.attention, VSA) == ("vsa" in name)
    with torch.device("meta"):
        model = VideoDiT(config.model)
    tokens = {"dit": 16_384, "debug": 256, "real": 12_288, "doom": 6_144}
    assert model.tokens == tokens[name.split("_")[0]]
    assert json.loads(json.dumps(describe(config))) == describe(config)


def test_dense_and_sparse_runs_differ_in_nothing_else():
    for name in [name for name in RUNS if name.endswith(("dense", "vsa", "bsa"))]:
        dense = RUNS[name[: name.rindex("_")] + "_dense"]()
        sparse = RUNS[name]()
        model = dataclasses.replace(dense.model, attention=sparse.model.attention)
        same = dataclasses.replace(dense, model=model, dump_folder=sparse.dump_folder)
        assert describe(same) == describe(sparse)


def test_runs_with_a_schedule_end_where_their_attention_is_configured():
    for name, steps in (
        ("dit_120m_vsa_adapt", 2801),
        ("debug_bsa_anneal", 13),
        ("dit_120m_bsa_anneal", 901),
    ):
        config = RUNS[name]()
        with torch.device("meta"):
            plan = Annealing(VideoDiT(config.model), config.sparsity.schedule, steps)
        assert plan.tiles_at(1) is None and plan.tiles_at(steps - 1) != plan.target
        assert plan.tiles_at(steps) == plan.target and steps <= config.training.steps
    assert plan.target == 26, "a tenth of 256"


def test_options_change_single_values():
    argv = ["--module", "models.video_dit", "--config", "debug_vsa", "--training.steps", "7"]
    argv += ["--model.attention.sparsity", "0.75", "--dataloader.path", "clips"]
    argv += ["--activation-checkpoint", "full", "--compile"]
    config, plain = load_config(argv), RUNS["debug_vsa"]()
    assert config.training.steps == 7
    assert config.model.attention == dataclasses.replace(plain.model.attention, sparsity=0.75)
    assert config.dataloader.path == "clips"
    assert (config.activation_checkpoint, config.compile) == ("full", True)
    assert config.optimizer == plain.optimizer


def test_a_module_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_runs.py").write_text(
        "from train.configs.video_dit import debug_dense\n"
        "from train.trainer import Trainer\n\n"
        "def mine() -> Trainer.Config:\n"
        "    config = debug_dense()\n"
        "    config.dump_folder = 'out/mine'\n"
        "    return config\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load_config(["--module", "my_runs", "--config", "mine"]).dump_folder == "out/mine"


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--config", "no_such"], "debug_vsa, dit_120m_bsa"),
        (["--module", "no.such", "--config", "x"], "no such module"),
        (["--module", "json", "--config", "x"], "no function in json says `-> Trainer.Config`"),
    ],
)
def test_unknown_names_get_the_known_ones(argv, words):
    with pytest.raises(ValueError) as error:
        load_config(argv)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_main_says_one_line_and_returns_1(capsys):
    assert main(["--config", "no_such"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert "error: --config no_such is not known: --module models.video_dit has" in line


def test_neither_triton_nor_torchtitans_trainer_and_models_are_imported():
    code = (
        "import sys, train.titan, train.trainer, train.registry\n"
        "bad = ('torchtitan.trainer', 'torchtitan.models', 'torchtitan.experiments')\n"
        "sys.exit(any(name.startswith(bad) for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
