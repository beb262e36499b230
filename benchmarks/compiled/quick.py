"""Triton's interpreter does the same, in little more than half of the time."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from triton.language import core
from triton.runtime import interpreter

OPERATIONS = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


def quicken() -> None:
    """Replace what the interpreter repeats; once a process, which has ``TRITON_INTERPRET=1``."""
    module: Any = interpreter
    patch, translate = module._patch_builtin, module._get_np_dtype
    builtins: dict[Any, str | None] = {}
    types: dict[str, Any] = {}

    def patch_once(package: Any, *rest: Any) -> None:
        """At each call of a function, though the kernel that calls it has patched everything."""
        if package not in builtins:
            found = (name for name, x in inspect.getmembers(package) if core.is_builtin(x))
            builtins[package] = next(found, None)
        name = builtins[package]
        if name is None or core.is_builtin(getattr(package, name)):
            patch(package, *rest)

    def translate_once(dtype: Any) -> Any:
        if dtype.name not in types:
            types[dtype.name] = translate(dtype)
        return types[dtype.name]

    module._patch_builtin, module._get_np_dtype = patch_once, translate_once
    type(module.interpreter_semantic).binary_op_sanitize_overflow_impl = refuse_overflow


def refuse_overflow(_: Any, lhs: Any, rhs: Any, operation: Any) -> None:
    """In numpy, where the interpreter goes through five operations of Triton's for it."""
    kind = lhs.type.scalar
    if kind.int_bitwidth < 64:
        wide = (x.handle.data.astype(np.int64) for x in (lhs, rhs))
        found = OPERATIONS[operation.__name__](*wide)
        low, high = kind.get_int_min_value(), kind.get_int_max_value()
        said = f"int{kind.int_bitwidth} overflow detected for operation {operation.__name__}"
        assert low <= found.min() and found.max() <= high, said
