"""What is measured together: a kernel or a layer, what is right of it, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.layers import leaves
from benchmarks.gpu.traffic import Traffic
from flexsparse.selfcheck.accuracy import error_ratios
from flexsparse.selfcheck.laws import Ratios, differ

HEADS = [0, -1]  # that are compared with plain PyTorch
Moves = dict[str, Traffic]
Compute = Callable[..., Sequence[Tensor]]
Judge = Callable[[list[Tensor], Tensor], Ratios]


class Unit(NamedTuple):
    """What is measured together.

    Attributes:
        steps: what is timed.
        check: error over the largest allowed, by result: right up to 1.
        more: what else a row says of a step, beside its time.
    """

    steps: Mapping[str, Callable[[], object]]
    check: Callable[[], Ratios]
    more: Callable[[str], dict[str, Any]]


def kernel(call: Compute, inputs: list[Tensor], judge: Judge, moves: Moves) -> Unit:
    """From ``inputs`` to results, timed backward too where ``moves`` has bytes for it.

    Args:
        judge: takes the results, with the inputs' gradients after them, and the gradient of the
            first result that these are for.
    """
    trains = "backward" in moves
    given = leaves(inputs) if trains else inputs
    kept = call(*given)
    grad = torch.empty_like(kept[0]).detach()
    if trains:
        grad.normal_(generator=torch.Generator(grad.device).manual_seed(2))

    def forward() -> Sequence[Tensor]:
        with torch.no_grad():
            return call(*inputs)

    def backward() -> Sequence[Tensor]:
        return torch.autograd.grad(kept[0], given, grad, retain_graph=True)

    def check() -> Ratios:
        runs = [[*forward(), *(backward() if trains else ())] for _ in range(2)]
        return judge(runs[0], grad) | {"in a second run": max(map(differ, *runs))}

    steps = {"forward": forward} | ({"backward": backward} if trains else {})
    return Unit(steps, check, lambda step: bytes_of(moves[step]))


def bytes_of(moved: Traffic) -> dict[str, Any]:
    return dict(read_bytes=moved.reads, written_bytes=moved.writes, cached_bytes=moved.cached)


def accurate(inputs: list[Tensor], *twins: Compute, parts: int = 1) -> Judge:
    """Two heads against the first of ``twins`` in fp64, with an error of at most twice that of the
    worst of them in the dtypes of ``inputs``; the worst of ``parts`` along the tokens counts."""

    def judge(found: list[Tensor], grad: Tensor) -> Ratios:
        some = [x.detach()[:, HEADS] for x in inputs]

        def results(twin: Compute, xs: list[Tensor]) -> list[Tensor]:
            xs = leaves(xs)
            outs = list(twin(*xs))
            if len(outs) < len(found):
                of_first = grad[:, HEADS].to(outs[0].dtype)
                outs += torch.autograd.grad(outs[0], xs, of_first)
            return [x.detach() for x in outs]

        exact = results(twins[0], [x.double() for x in some])
        plain = [results(twin, some) for twin in twins]
        ratios = error_ratios([x[:, HEADS] for x in found], plain, exact, some, parts)
        return {f"result {number}": ratio for number, ratio in enumerate(ratios)}

    return judge
