"""Which buffers the launches of a generated module are given, and how many bytes these have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod

import torch

_SHAPE = r"\(([^)]*)\)"


def inputs(source: str) -> dict[str, int]:
    """Bytes of the inputs of a generated module, by name; of those that share memory, of that."""
    return _made(r"(\w+) = rand_strided\(", source)


def sizes(source: str) -> dict[str, int]:
    """Bytes of the inputs of a generated module, of what it allocates and of what other libraries
    return (as torch 2.14 and later assert it), by name."""
    found = _made(r"(\w+) = (?:empty_strided_cuda|rand_strided)\(", source)
    told = rf"assert_tensor_metadata\((\w+), {_SHAPE}, .*?torch\.(\w+)"
    for name, shape, dtype in re.findall(told, source):
        found[name] = _bytes(shape, dtype)
    for name, size in re.findall(r"(\w+) = workspace_\d+\[.*\.view\(\[(\d+)\]\)$", source, re.M):
        found[name] = _bytes(size, "float32")  # sums over rows, of parts that programs have left
    dtypes = dict(re.findall(r"^\s*(\w+) = \w+\(.*torch\.(\w+)\)$", source, re.M))
    again = r"(\w+) = (?:reinterpret_tensor\()?(\w+)\b.*; del \2  # reuse$"
    part = (
        rf"(\w+) = (?:torch\.as_strided|reinterpret_tensor)\((\w+), {_SHAPE}, .*\)(?:  # alias)?$"
    )
    for line in source.splitlines():  # in order: one may be of one before it
        if of_it := re.search(again, line):
            name, of = of_it.groups()
            if of in found:
                found[name], dtypes[name] = found[of], dtypes.get(of, "")
        elif (of_it := re.search(part, line)) and dtypes.get(of_it[2]):
            found[of_it[1]], dtypes[of_it[1]] = _bytes(of_it[3], dtypes[of_it[2]]), dtypes[of_it[2]]
    return found


def _made(by: str, source: str) -> dict[str, int]:
    found = re.findall(rf"{by}{_SHAPE}, .*torch\.(\w+)\)$", source, re.M)
    return {name: _bytes(shape, dtype) for name, shape, dtype in found}


def _bytes(shape: str, dtype: str) -> int:
    return prod(map(int, re.findall(r"\d+", shape))) * getattr(torch, dtype).itemsize


def least_moved(given: str, text: str, known: Mapping[str, int]) -> int:
    """Bytes that a kernel moves if it reads and writes each argument once; one of Inductor's that
    stands for input and output counts twice.

    Args:
        given: the arguments of its launch.
        text: the kernel's source, of ``machine_code.kernels``: its parameters say what it reads and
            writes.
        known: of :func:`sizes`.
    """
    names = [name for name in re.findall(r"[A-Za-z_]\w*", given) if name in known]
    (parameters,) = re.findall(r"^def kernel\((.*?)\)", text, re.S | re.M)
    pointers = re.findall(r"\w*ptr\w*", parameters)
    changed = {name for name, of in zip(names, pointers) if of.startswith("in_out")}
    return sum(known[name] * (1 + (name in changed)) for name in set(names))


def unknown(given: str, known: Mapping[str, int]) -> list[str]:
    """Buffers among the arguments of a launch whose size :func:`sizes` did not find."""
    tensors = re.findall(r"\b(?:buf|primals_|tangents_|getitem_)\d+", given)
    return [name for name in tensors if name not in known]
