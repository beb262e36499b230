"""Which buffers the launches of a generated module are given, and how many bytes these have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod

import torch


def sizes(source: str) -> dict[str, int]:
    """Bytes of the inputs of a generated module and of what it allocates, by name."""
    made = r"(\w+) = (?:empty_strided_cuda|rand_strided)\(\(([^)]*)\), .*torch\.(\w+)\)$"
    found = {}
    for name, shape, dtype in re.findall(made, source, re.M):
        found[name] = _bytes(shape, dtype)
    told = r"assert_tensor_metadata\((\w+), \(([^)]*)\), .*?torch\.(\w+)"  # by other libraries
    for name, shape, dtype in re.findall(told, source):
        found[name] = _bytes(shape, dtype)
    again = r"(\w+) = (?:reinterpret_tensor\()?(\w+)\b.*; del \2  # reuse$"
    for name, of in re.findall(again, source, re.M):
        if of in found:
            found[name] = found[of]
    return found


def _bytes(shape: str, dtype: str) -> int:
    return prod(map(int, re.findall(r"\d+", shape))) * getattr(torch, dtype).itemsize


def least_moved(given: str, text: str, known: Mapping[str, int]) -> int:
    """Bytes that a kernel of Inductor's moves if it reads and writes each argument once.

    Args:
        given: the arguments of its launch.
        text: the kernel's source, whose parameters say what it reads and writes.
        known: of :func:`sizes`.
    """
    names = [name for name in re.findall(r"[A-Za-z_]\w*", given) if name in known]
    (parameters,) = re.findall(r"^def \w+\((.*?)\)", text, re.S | re.M)
    pointers = re.findall(r"\w*ptr\w*", parameters)
    changed = {name for name, of in zip(names, pointers) if of.startswith("in_out")}
    return sum(known[name] * (1 + (name in changed)) for name in set(names))
