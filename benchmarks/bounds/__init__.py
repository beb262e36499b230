"""The least time that a layer's kernels can take on an H200, from their machine code: a bound,
never a time. ``python -m benchmarks.bounds``; docs/results/bounds.md states the model.

Begin with model.py (rates and the bound), then sass.py (what is counted) and launches.py.
"""
