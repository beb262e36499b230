"""Runs side by side: the numbers are the runs' own, and what is no run is named."""

import json
import shutil
import statistics
import time
from dataclasses import replace

import pytest
from PIL import Image
from test_nonfinite import poison
from torch.utils.tensorboard import SummaryWriter
from trainer_runs import SPARSE, tiny

from models.attention import Dense
from train.compare.__main__ import main
from train.compare.runs import BATCH, read_run
from train.compare.table import differences, table
from train.records.metrics import Metrics
from train.validation import Validator

LOGGED = Metrics.Config(log_freq=1, enable_tensorboard=True)
VALIDATED = Validator.Config(interval=3, clips=4, sample_steps=0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A dense run, whose curves are in a folder of another name than tb; and a sparse one with a
    skipped step, that stopped at 4 and did 4 again."""
    folder = tmp_path_factory.mktemp("runs")
    options = dict(metrics=LOGGED, validation=VALIDATED)
    elsewhere = options | {"metrics": replace(LOGGED, save_tb_folder="curves")}
    dense = tiny(folder / "dense", attention=Dense(), **elsewhere).build()
    dense.train()
    dense.close()
    records = {}
    for until in (4, 6):
        sparse = tiny(folder / "vsa", attention=SPARSE, seed=1, **options).build()
        poison(sparse, [2])
        sparse.train(until=until)
        sparse.close()
        records |= {record.step: record.loss for record in sparse.history.steps}
        time.sleep(1)  # TensorBoard's files are told apart by the second in which they begin
    return folder, dense, records


def test_the_curves_are_the_runs_own(runs):
    folder, dense, records = runs
    found = read_run(str(folder / "dense"))
    assert [loss for _, loss in found.loss] == pytest.approx([r.loss for r in dense.history.steps])
    resumed = read_run(str(folder / "vsa"))
    assert dict(resumed.loss) == pytest.approx(records)
    assert [step for step, _ in resumed.loss] == [1, 3, 4, 5, 6], "each step once, and none skipped"
    assert resumed.last("train/skipped") == 1
    assert resumed.start["step"] == 3 and resumed.start["seeds"]["training.seed"] == 1


def test_of_what_a_later_start_did_again_nothing_earlier_is_told(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    starts = [
        {"train/loss": range(1, 9), "validation/loss": (0, 4, 8), "attention/sparsity": (8,)},
        {"train/loss": (5, 6)},  # ends before it validates
        {"train/loss": (1,), "validation/loss": (0,)},  # afresh
    ]
    told = []
    for i, curves in enumerate(starts):
        with SummaryWriter(str(tmp_path / "tb" / str(i))) as writer:
            for tag, steps in curves.items():
                for step in steps:
                    writer.add_scalar(tag, i, step)
        (file,) = (tmp_path / "tb" / str(i)).iterdir()
        file.rename(file.with_name(f"events.out.tfevents.{i}"))  # the second in which it begins
        told.append({tag: c for tag, c in read_run(str(tmp_path)).curves.items() if c})
    first, second, afresh = told
    assert first["validation/loss"] == [(0, 0), (4, 0), (8, 0)]
    assert second == {
        "train/loss": [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1), (6, 1)],
        "validation/loss": [(0, 0), (4, 0)],
    }
    assert afresh == {"train/loss": [(1, 2)], "validation/loss": [(0, 2)]}


def test_flops_add_up_over_steps_that_were_logged(runs):
    folder, dense, _ = runs
    found = read_run(str(folder / "dense"))
    (each,) = {value for _, value in found.curves["train/flops_per_clip"]}
    assert found.flops([1, 3, 6]) == pytest.approx([4 * each, 12 * each, 24 * each])
    found.curves["train/flops_per_clip"][:] = [(2, 1.0), (4, 10.0)]
    assert found.config[BATCH] == 4
    assert found.flops([1, 2, 3, 4, 6]) == [4, 8, 48, 88, 168]


def test_the_table_tells_results_and_what_differs(runs):
    folder, dense, _ = runs
    names = [str(folder / "dense"), str(folder / "vsa")]
    both = [read_run(name) for name in names]
    lines = {line.split("  ")[0]: line for line in table(both).splitlines()}
    last = statistics.fmean([dense.history.steps[-1].loss])
    assert f"{last:.4f}" in lines["loss, mean of the last tenth"]
    assert f"{dense.history.validation[-1][1]:.4f}" in lines["validation loss, last"]
    assert "Dense" in lines["attention"] and "VSA, 62.5% sparse" in lines["attention"]
    assert lines["steps skipped"].split()[-2:] == ["0", "1"]
    deeper = replace(both[0], config={"model.dit.attention.class": "Dense"} | both[0].config)
    del deeper.config["model.attention.class"]
    assert table([deeper]).splitlines()[1].split() == ["attention", "Dense"]
    found = differences(both)
    assert found["training.seed"] == [0, 1] and "dump_folder" not in found
    assert not {name for name in found if name.startswith("version of")}


def test_a_second_call_draws_over_its_own_picture_alone(runs, tmp_path, capsys, monkeypatch):
    folder, _, _ = runs
    names, out = [str(folder / "dense"), str(folder / "vsa")], tmp_path / "compare.png"
    monkeypatch.chdir(tmp_path)
    assert main(names[:1]) == 0
    first = out.read_bytes()
    assert first.startswith(b"\x89PNG")
    assert main(names) == 0 and out.read_bytes() != first
    assert "training FLOPs" in capsys.readouterr().out
    for other in (b"", b"a text"):
        out.write_bytes(other)
        assert main(names) == 2 and out.read_bytes() == other
        assert "compare.png is none of this command's pictures" in capsys.readouterr().err
    Image.new("RGB", (2, 2)).save(out)
    assert main(names) == 2
    assert main([*names, "--out", "there.txt"]) == main([*names, "--out", "no/there.png"]) == 2
    assert capsys.readouterr().err.count("give a .png, in a folder that is there") == 2


def test_what_is_no_run_is_a_line(runs, tmp_path, capsys):
    folder, _, _ = runs
    assert main([str(tmp_path), "--out", str(tmp_path / "x.png")]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path} is no run's directory" in said and said.count("\n") == 1
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert main([str(folder / "dense"), str(tmp_path), "--out", str(tmp_path / "x.png")]) == 2
    assert "has no losses in tb: " in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_a_start_that_was_cut_off_is_named_with_its_file(runs, tmp_path, capsys):
    run = tmp_path / "vsa"
    shutil.copytree(runs[0] / "vsa", run)
    starts = run / "starts.jsonl"
    starts.write_text(starts.read_text()[:-30])
    assert main([str(run), "--out", str(tmp_path / "x.png")]) == 2
    said = capsys.readouterr().err
    assert f"error: {starts}: its last line, 2, is no JSON" in said and said.count("\n") == 1


def test_a_start_leaves_versions_seeds_and_git_state(runs):
    folder, _, _ = runs
    starts = [json.loads(line) for line in (folder / "vsa" / "starts.jsonl").open()]
    assert [start["step"] for start in starts] == [0, 3]
    for start in starts:
        assert {"python", "torch", "torchtitan", "einops"} <= start["versions"].keys()
        assert start["seeds"].keys() >= {"training.seed", "dataloader.seed", "validation.seed"}
        assert len(start["git"]["commit"]) == 40 and isinstance(start["git"]["changed"], list)
        assert start["processes"] == 1 and start["device"] == "cpu"
