"""Triton's interpreter does the same, in half of the time."""

from __future__ import annotations

import inspect
from math import prod
from typing import Any

from triton.language import core, semantic
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
    _remember_shapes()
    # It computes each sum and product of integers again, for an assertion that is left out.
    assert not module.InterpreterOptions().debug
    type(module.interpreter_semantic).binary_op_sanitize_overflow_impl = lambda *_: None


def _remember_shapes() -> None:
    """Types of blocks, and what tensors say of their shape, are made once for each shape."""
    make_type, blocks, shapes = core.block_type.__init__, {}, {}

    def typed(self: Any, element_ty: Any, shape: Any) -> None:
        key = element_ty.name, *(getattr(size, "value", size) for size in shape)
        if key not in blocks:
            make_type(self, element_ty, shape)
            blocks[key] = dict(vars(self))
        vars(self).update(blocks[key])

    def made(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        sizes = tuple(type.shape) if type.is_block() else ()
        if sizes not in shapes:
            constants = core.tuple([core.constexpr(size) for size in sizes])
            shapes[sizes] = core.constexpr(prod(sizes)), constants
        self.numel, self.shape = shapes[sizes]

    broadcast = semantic.TritonSemantic.broadcast_impl_value

    def of_one_shape(self: Any, lhs: Any, rhs: Any) -> Any:
        same = lhs.shape is rhs.shape  # as `made` gives it to all tensors of a shape
        return (lhs, rhs) if same else broadcast(self, lhs, rhs)

    core.block_type.__init__, core.tensor.__init__ = typed, made
    semantic.TritonSemantic.broadcast_impl_value = of_one_shape
