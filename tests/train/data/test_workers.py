"""A data loading process that fails is named, and none is left behind."""

from unittest.mock import Mock

import pytest

from train.data.workers import DataWorkerError, watched


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


@pytest.mark.parametrize(
    "said, dead, named",
    [
        (STUCK, None, "1 of 2 on rank 0 is stuck at batch 3"),
        (KILLED, 1, "1 of 2 on rank 0 ended at or after batch 3"),
        (KILLED, 0, "0 of 2 on rank 0 ended at or after batch 4"),
        (KILLED, None, "1 of 2 on rank 0 ended at or after batch 3"),
    ],
)
def test_the_process_that_is_stuck_or_dead_is_named(said, dead, named):
    loader = Failing(said)
    for i, process in enumerate(loader._workers):
        process.is_alive.return_value = i != dead
    with pytest.raises(DataWorkerError, match=rf"^data worker {named}: DataLoader [^\n]*\)$"):
        list(watched(loader, lambda batch: f"batch {batch}"))
    for process in loader._workers:
        process.kill.assert_called_once_with()


def test_what_a_dataset_raised_passes():
    with pytest.raises(RuntimeError, match="^of a dataset$"):
        list(watched(Failing("of a dataset"), str))
