"""A data loading process that fails is named, and none is left behind."""

from unittest.mock import Mock

import pytest

from train.data.order.workers import DataWorkerError, watched


class Failing:
    """What iter(DataLoader) is, of two processes, of which the second fails at its second batch."""

    def __init__(self, said):
        self._workers, self.said, self.given = [Mock(), Mock()], said, 0
        self._shutdown_workers = Mock()

    def __iter__(self):
        return self

    def __next__(self):
        if self.given == 3:
            raise RuntimeError(self.said)
        self.given += 1
        return self.given


STUCK = "DataLoader timed out after 1 seconds"
KILLED = "DataLoader worker (pid 1) is killed by signal: Killed.\nmore"
NAMED = r"DataLoader worker \(pid 1\) is killed by signal: Killed\."


@pytest.mark.parametrize(
    "said, named",
    [
        (STUCK, r"data worker 1 of 2 on rank 0 is stuck at batch 3: DataLoader [^\n]*\)"),
        (KILLED, f"rank 0 lost a data worker as it waited for batch 3: {NAMED}"),
    ],
)
def test_the_process_that_is_stuck_or_dead_is_named(said, named):
    loader = Failing(said)
    with pytest.raises(DataWorkerError, match=f"^{named}$"):
        list(watched(loader, lambda batch: f"batch {batch}"))
    for process in loader._workers:
        process.kill.assert_called_once_with()


def test_what_a_dataset_raised_passes():
    with pytest.raises(RuntimeError, match="^of a dataset$"):
        list(watched(Failing("of a dataset"), str))
