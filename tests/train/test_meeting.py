"""The processes of a start find each other, whatever earlier starts have left in the store."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._C._distributed_c10d import HashStore
from trainer_runs import finish, start

from train.distributed.meeting import meet
from train.distributed.peers import LostPeerError


class Killed(Exception):
    pass


class Mortal:
    """A store as seen by a process that is killed after so many calls."""

    def __init__(self, store, calls: int) -> None:
        self.store, self.calls = store, calls

    def __getattr__(self, name):
        if self.calls == 0:
            raise Killed
        self.calls -= 1
        return getattr(self.store, name)


def starts(store, delays, calls=None, timeout=20.0):
    """What `meet` gives each rank of a start, or what it raises."""

    def process(rank: int):
        time.sleep(delays[rank])
        seen: Any = store if calls is None else Mortal(store, calls[rank])
        try:
            return meet(seen, rank, len(delays), timeout)
        except (Killed, LostPeerError) as error:
            return error

    with ThreadPoolExecutor(len(delays)) as pool:
        return list(pool.map(process, range(len(delays))))


@st.composite
def histories(draw):
    """Of a run: the calls after which the ranks of its earlier starts are killed, and how late
    each rank of the last one is."""
    world = draw(st.integers(1, 5))
    calls = st.lists(st.integers(0, 12), min_size=world, max_size=world)
    late = st.lists(st.integers(0, 2), min_size=world, max_size=world)
    return draw(st.lists(calls, max_size=3)), [0.02 * n for n in draw(late)]


@settings(max_examples=20, deadline=None)
@given(histories())
def test_all_of_a_start_agree_on_a_word_that_is_new(history):
    store, (killed, delays) = HashStore(), history
    before = set()
    for calls in killed:
        before |= {x for x in starts(store, [0.0] * len(delays), calls, 0.05) if type(x) is str}
    words = starts(store, delays)
    assert len(set(words)) == 1 and type(words[0]) is str
    assert words[0] not in before
    again = starts(store, delays)
    assert len(set(again)) == 1 and again != words


def test_who_does_not_come_is_named_in_a_line():
    store = HashStore()
    assert len(set(starts(store, [0.0] * 4))) == 1, "all of an earlier start came"
    with ThreadPoolExecutor(2) as pool:
        first, third = (pool.submit(meet, store, rank, 4, 0.3) for rank in (0, 2))
        assert first.exception() is not None and third.result()
    said = str(first.exception())
    assert isinstance(first.exception(), LostPeerError)
    assert "waited for parallel.timeout_seconds, 0.3, and of the others ranks 1, 3 did not" in said
    with pytest.raises(LostPeerError, match="rank 2 of 4 waited .* 0.1, and rank 0 did not come"):
        meet(store, 2, 4, 0.1)
    with pytest.raises(LostPeerError, match="ranks 1, 2, 3, 4, 5, 6, 7, 8 and 3 more did not"):
        meet(store, 0, 12, 0.0)


def test_torchrun_brings_back_nodes_that_restarted_unequally_often():
    """Of two nodes one fails and counts a restart; the other hangs, and counts none."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    options = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d"]
    options += ["--rdzv-id=1", f"--rdzv-endpoint=localhost:{port}"]
    script = str(Path(__file__).with_name("node_runs.py"))
    torchrun = ["-m", "torch.distributed.run", *options, script]
    said = finish([*start(*torchrun, "fails"), *start(*torchrun, "hangs")])
    assert said.count("met after [0, 1] restarts") == 2, said
