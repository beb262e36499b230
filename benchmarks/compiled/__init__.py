"""Compiles for an NVIDIA GPU that is not there: launches, machine code, spills. Measures no time."""
