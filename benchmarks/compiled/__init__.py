"""Compiles for an NVIDIA GPU that is not there. Measures no time."""
