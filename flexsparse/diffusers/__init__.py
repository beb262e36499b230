"""Sparse attention for the video models of diffusers, in one line.

    from flexsparse.diffusers import BSA, VSA, restore, sparsify

    sparsify(pipe.transformer, VSA(top_k=64))           # or VSA(sparsity=0.9), BSA(keep=0.5)
    sparsify(pipe.transformer, VSA(top_k=64), dense_above=0.85, dense_layers=(0, 1))
    restore(pipe.transformer)                           # as it was, bit for bit

Read convert.py, call.py, one of the models' files. This package alone imports diffusers.
"""

from flexsparse.by_noise import ByNoise
from flexsparse.diffusers.convert import restore, sparsify
from flexsparse.diffusers.families import Family, register
from flexsparse.diffusers.gates import gates_of, load_gates, save_gates
from flexsparse.diffusers.kandinsky import nabla
from flexsparse.slots import BSA, VSA, Dense

__all__ = [
    "BSA",
    "VSA",
    "ByNoise",
    "Dense",
    "Family",
    "gates_of",
    "load_gates",
    "nabla",
    "register",
    "restore",
    "save_gates",
    "sparsify",
]
