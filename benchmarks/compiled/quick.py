"""Triton's interpreter does the same, in two thirds of the time."""

from __future__ import annotations

import inspect
from typing import Any

from triton.language import core
from triton.runtime import interpreter


def quicken() -> None:
    """Replace what the interpreter repeats; once a process, which has ``TRITON_INTERPRET=1``."""
    module: Any = interpreter
    patch, translate = module._patch_builtin, module._get_np_dtype
    firsts: dict[Any, str | None] = {}
    types: dict[str, Any] = {}

    def patch_once(package: Any, *rest: Any) -> None:
        """Each call of a function asks for it, though the kernel that calls has it done."""
        if package not in firsts:
            found = (name for name, x in inspect.getmembers(package) if core.is_builtin(x))
            firsts[package] = next(found, None)
        name = firsts[package]
        if name is None or core.is_builtin(getattr(package, name)):
            patch(package, *rest)

    def translate_once(dtype: Any) -> Any:
        if dtype.name not in types:
            types[dtype.name] = translate(dtype)
        return types[dtype.name]

    module._patch_builtin, module._get_np_dtype = patch_once, translate_once
    # It computes each sum and product of integers again, for an assertion that is left out.
    assert not module.InterpreterOptions().debug
    type(module.interpreter_semantic).binary_op_sanitize_overflow_impl = lambda *_: None
