"""Runs what Inductor wrote for a GPU on the CPU, in Triton's interpreter.

Every buffer that a graph allocates starts as NaN, or as numbers that are no index, so that what
nobody wrote is seen where it is read. The process needs ``TRITON_INTERPRET=1`` before it imports
triton, and pretends nothing: the sources come from a process that did (``capture.py``).
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Sequence
from contextlib import nullcontext
from math import prod
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import PyCodeCache
from torch._inductor.runtime import triton_helpers, triton_heuristics
from triton.language.extra import libdevice
from triton.runtime import interpreter

from benchmarks.compiled.quick import quicken

NO_INDEX = 1_500_000_000


class Kernel:
    """A Triton kernel with one of the configs that Inductor would launch it with."""

    def __init__(self, function: Any, configs: Sequence[Any], triton_meta: Any, inductor_meta: Any):
        self.function, self.inductor_meta = function, inductor_meta
        # Any of Inductor's configs is right; that of the fewest programs is interpreted soonest.
        self.config = max(configs or [triton.Config({})], key=lambda x: prod(x.kwargs.values()))
        self.constants = triton_meta["constants"]
        parameters = inspect.signature(function.fn).parameters.values()
        self.names = [x.name for x in parameters if x.annotation is not tl.constexpr]

    def run(self, *args: Any, stream: Any = None) -> None:
        given, grid = dict(zip(self.names, args)), args[len(self.names) :]
        if not grid:
            rule = triton_heuristics.GridExpr.from_meta(self.inductor_meta, self.config)
            grid = rule.eval_slow({**given, **self.config.kwargs})
        self.function[grid](**{**self.constants, **self.config.kwargs, **given})


def load(source: str) -> Any:
    """The function of a list of tensors that ``source``, a graph's, defines: it empties the list
    and returns the graph's outputs.

    Raises:
        RuntimeError: the graph allocates memory otherwise than by what stands in for it here.
    """
    if others := set(re.findall(r"[\w.]*empty\w*(?=\()", source)) - {"empty_strided_cuda"}:
        raise RuntimeError(f"{', '.join(sorted(others))} would hand out memory without NaN")
    patches: list[tuple[Any, str, Any]] = [
        (triton_heuristics, "cached_autotune", _first_config),
        (triton_helpers, "set_driver_to_gpu", lambda: None),
        (AsyncCompile, "triton", lambda self, name, text, **_: vars(PyCodeCache.load(text))[name]),
        (AsyncCompile, "wait", lambda *_: None),
    ]
    for owner, name, value in patches:
        mock.patch.object(owner, name, value, create=True).start()
    module: Any = PyCodeCache.load(source)
    module.empty_strided_cuda = _unwritten
    module.get_raw_stream = lambda device: 0
    return module.call


def strides_of_tangent(source: str) -> tuple[int, ...]:
    """In which memory layout a backward graph wants the gradient of the one output."""
    (strides,) = re.findall(r"tangents_1 = rand_strided\(\(.*?\), \((.*?)\)", source)
    return tuple(int(x) for x in strides.split(",") if x.strip())


def prepare() -> None:
    """Stand in for what graphs and kernels ask of a device; once a process."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("set TRITON_INTERPRET=1 before triton is imported")
    quicken()
    torch.cuda._DeviceGuard = lambda device: nullcontext()  # type: ignore
    torch.cuda.set_device = lambda device: None
    for name, value in vars(libdevice).items():
        if inspect.isfunction(value):
            setattr(libdevice, name, _libdevice(name))


def _first_config(size_hints: Any, configs: Any, triton_meta: Any, *_: Any, **options: Any) -> Any:
    return lambda function: Kernel(function, configs, triton_meta, options["inductor_meta"])


def _unwritten(size: Any, stride: Any, dtype: torch.dtype) -> Tensor:
    x = torch.empty_strided(size, stride, dtype=dtype)
    if dtype.is_floating_point:
        return x.fill_(torch.nan)
    return x.fill_(True if dtype == torch.bool else min(torch.iinfo(dtype).max, NO_INDEX))


def _libdevice(name: str) -> Any:
    """A stand-in for a function of libdevice's, which are empty in the interpreter."""
    known = {"ceil": np.ceil, "floor": np.floor, "rsqrt": lambda x: 1 / np.sqrt(x)}

    def function(x: Any, *_: Any) -> Any:
        if name not in known:
            raise NotImplementedError(f"libdevice.{name} has no stand-in")
        handle = interpreter.TensorHandle(known[name](x.handle.data), x.handle.dtype)
        return tl.tensor(handle, x.type)

    return function
