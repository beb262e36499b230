"""What Inductor writes for a function on the pretended GPU (``pretend.py``)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import FakeTensorMode

Built = tuple[Callable[..., Any], Sequence[Tensor]]
Case = Callable[[torch.device], Built]


class Graphs(NamedTuple):
    """The source of each graph, forward before backward, and what stopped the compiler."""

    sources: list[str]
    error: Exception | None


class _Reached(Exception):
    """The compiled forward is called: all graphs are written, and there is no GPU to run them."""


def graphs(case: Case, backward: bool = True, dynamic: bool = False) -> Graphs:
    """Compile what ``case`` returns, without a graph break.

    Args:
        case: called with the device, under a mode in which tensors hold no data; returns a
            callable and its arguments. Build modules under ``with device:`` (``Module.to`` does
            not work in that mode).
        backward: also compile the backward; some argument must then require grad.
        dynamic: for inputs of any sizes.
    """
    sources: list[str] = []
    original = GraphLowering.compile_to_module
    with tempfile.TemporaryDirectory() as folder:

        def keep(self: GraphLowering) -> SimpleNamespace:
            source: Any = self.codegen()[0]
            sources.append(getattr(source, "value", source))
            path = Path(folder, f"graph{len(sources)}.py")
            path.write_text(sources[-1])
            return SimpleNamespace(call=_reached, __file__=str(path))

        GraphLowering.compile_to_module = keep  # type: ignore[method-assign]
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), torch.set_grad_enabled(backward):
                function, inputs = case(torch.device("cuda", 0))
                torch.compile(function, fullgraph=True, dynamic=dynamic)(*inputs)
        except _Reached:
            return Graphs(sources, None)
        except Exception as error:
            return Graphs(sources, error)
        finally:
            GraphLowering.compile_to_module = original
    return Graphs(sources, RuntimeError("the function ran without being compiled"))


def _reached(args: Any) -> Any:
    raise _Reached
