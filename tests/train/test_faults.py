"""Faults of runs on several processes: the last checkpoint loads, nothing is lost but the steps
since, and torchrun brings a run back by itself."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from fault_runs import TIMEOUT, faulty
from trainer_runs import finish, run, start

from train.weights.checkpoint import complete_steps

HERE = Path(__file__).parent
RUN = str(HERE / "fault_runs.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> tuple[Path, list[dict]]:
    """What faulty_ranks.py found, by rank, and what its processes said."""
    folder = tmp_path_factory.mktemp("faults")
    output = finish(start(str(HERE / "faulty_ranks.py"), str(folder), ranks=2))
    (folder / "output").write_text(output)
    return folder, [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def torchrun(*arguments: str, processes: int, restarts: int) -> subprocess.Popen:
    """torchrun itself."""
    options = ["--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    return start("-m", "torch.distributed.run", *options, *arguments)[0]


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> tuple[Path, str]:
    """A run that came back twice, and what was said."""
    folder = tmp_path_factory.mktemp("killed")
    options = ("--config", "run", "--dump-folder", str(folder))
    return folder, finish([torchrun(RUN, "kills", *options, processes=2, restarts=2)])


def whole(folder: Path) -> dict[str, torch.Tensor]:
    """The weights at the end of a run, and their average, from its checkpoint."""
    trainer, found = run(faulty(folder))
    assert trainer == [], "nothing was left to do"
    return found


def test_killed_in_a_step_and_in_a_save_torchrun_brings_the_run_back(killed, ranks):
    folder, output = killed
    assert "rank 0 of 2 waited for the others in step 4, and one of them is gone" in output
    assert "removed what a killed run left of step-6" in output
    starts = [json.loads(line)["step"] for line in (folder / "starts.jsonl").open()]
    assert starts == [0, 3, 5], "each start went on from the last whole checkpoint"
    straight = ranks[1][0]["undisturbed"]["weights"]
    found = whole(folder)
    assert found.keys() == straight.keys()
    assert all(torch.equal(found[name], straight[name]) for name in straight)


def test_the_checkpoint_of_two_loads_at_four_and_sigterm_stops_them_at_one_step(killed, ranks):
    folder, _ = killed
    straight = ranks[1][0]["undisturbed"]["weights"]
    options = ("--config", "run", "--dump-folder", str(folder), "--training.steps", "100000")
    processes = start(RUN, "none", *options, ranks=4)
    log, patience = folder / "train.log", time.monotonic() + 100
    while "step 9/" not in log.read_text():
        assert time.monotonic() < patience and {p.returncode for p in processes} == {None}
        time.sleep(0.05)
    for process in processes:  # as torchrun hands it on
        process.send_signal(signal.SIGTERM)
    output = finish(processes)
    loaded = torch.load(folder / "loaded.pt")
    assert all(torch.equal(loaded[name], straight[name]) for name in straight)
    (said,) = [line for line in output.splitlines() if "SIGTERM: saved at step" in line]
    step = complete_steps(folder / "checkpoint")[-1]
    assert f"saved at step {step};" in said and step >= 9
    trainer = faulty(folder, steps=100_000).build()
    assert trainer.step == step
    trainer.close()


def test_a_full_disk_on_one_rank_is_named_and_all_go_on(ranks):
    folder, found = ranks
    for rank in found:
        assert rank["full_disk_on_one_rank"] == {"after": [1, 2], "end": [1, 2, 4]}
    said = (folder / "output").read_text()
    assert "step-3 not saved: File too large" in said and "checkpoint is step-2" in said


def test_all_ranks_skip_what_one_finds_is_no_number(ranks):
    for rank in ranks[1]:
        assert rank["nan_on_one_rank"] == {"stayed": True, "skipped": [2]}


def test_a_stuck_worker_and_a_silent_rank_are_named(tmp_path):
    options = ("--config", "run_with_workers", "--dump-folder", str(tmp_path))
    output = finish(start(RUN, "stuck", *options, ranks=2), expect=1)
    (worker,) = [line for line in output.splitlines() if "data worker" in line]
    assert "data worker 0 of 1 on rank 1 is stuck at positions 10 to 11 of the data: clip" in worker
    assert f"timed out after {2 * TIMEOUT} seconds" in worker
    (waited,) = [line for line in output.splitlines() if "waited" in line]
    assert "rank 0 of 2 waited for the others in step 3" in waited
    assert f"parallel.timeout_seconds, {TIMEOUT}" in waited
    assert complete_steps(tmp_path / "checkpoint") == [1, 2]
    assert "Traceback" not in output


def test_a_process_that_never_came_is_named(tmp_path):
    options = ("--config", "run_with_workers", "--dump-folder", str(tmp_path / "run"))
    first, second = start(RUN, "none", *options, ranks=2)
    second.kill()
    (waited,) = finish([first], expect=1).splitlines()
    assert "rank 0 of 2 waited for the others in the start of the run" in waited
    assert f"parallel.timeout_seconds, {TIMEOUT}" in waited
    assert not (tmp_path / "run").exists()
