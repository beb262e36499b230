"""Compiles for an NVIDIA GPU that is not there. Measures no time.

Begin with proof.py; pretend.py makes torch believe in the GPU.
"""
